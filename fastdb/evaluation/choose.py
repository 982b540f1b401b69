"""Which checkpoint to use, why, and what to beware of: a pure function of the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdb.evaluation.measures import Figure, Value


@dataclass(frozen=True)
class Row:
    """A checkpoint's figures; the first row of a table is the untrained base's."""

    label: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Pick:
    """The row to use by its number and label, the reason, an overfit warning ("" when there is none), other remarks."""

    row: int
    label: str
    reason: str
    overfit: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Broken:
    """A figure beyond its limit."""

    figure: Figure
    value: float
    bound: float

    def __str__(self) -> str:
        """What it means, with the numbers."""
        wanted = "at least" if self.figure.higher_is_better else "at most"
        return f"{self.figure.broken} ({self.figure.name} {self.value:.3f}, wanted {wanted} {self.bound:.3f})"


def pick(rows: Sequence[Row], figures: Sequence[Figure]) -> Pick:
    """Choose among the rows after the first, which is the reference.

    Those that keep every limit are compared by their likeness, the mean of their goal figures; of those within one
    standard error of the best, the earliest is taken (the one-standard-error rule of Breiman et al. 1984, section
    3.4.3: what trained less has changed less). When none keeps every limit, those that break the fewest are compared.

    Raises:
        ValueError: there is no row beside the reference.
    """
    if len(rows) < 2:
        raise ValueError("nothing to choose from")
    table = _Table(rows, [likeness(row, figures) for row in rows], [broken(row, rows[0], figures) for row in rows])
    fewest = min(len(found) for found in table.breaks[1:])
    pool = [number for number in range(1, len(rows)) if len(table.breaks[number]) == fewest]
    best = max(pool, key=lambda number: table.likeness[number].mean)
    enough = table.likeness[best].mean - table.likeness[best].error
    chosen = next(number for number in pool if table.likeness[number].mean >= enough)
    if not any(figure.goal and figure.name in row.values for row in rows for figure in figures):
        return Pick(chosen, rows[chosen].label, "no prompt asks for the subject, so its likeness is not known")
    remarks = (table.little_learned(chosen), table.still_rising(chosen))
    return Pick(
        chosen,
        rows[chosen].label,
        table.reason(chosen, best),
        table.overfit(chosen),
        tuple(remark for remark in remarks if remark),
    )


def likeness(row: Row, figures: Sequence[Figure]) -> Value:
    """The mean of a row's goal figures, with its error; 0 where it has none."""
    found = [row.values[figure.name] for figure in figures if figure.goal and figure.name in row.values]
    if not found:
        return Value(0.0)
    error = math.sqrt(sum(value.error**2 for value in found)) / len(found)
    return Value(sum(value.mean for value in found) / len(found), error)


def broken(row: Row, start: Row, figures: Sequence[Figure]) -> list[Broken]:
    """The figures of a row that are beyond their limit."""
    found = []
    for figure in figures:
        bound, value = bound_of(figure, start.values), row.values.get(figure.name)
        if bound is None or value is None:
            continue
        if value.mean < bound if figure.higher_is_better else value.mean > bound:
            found.append(Broken(figure, value.mean, bound))
    return found


def bound_of(figure: Figure, start: Mapping[str, Value]) -> float | None:
    """The limit of a figure as a number; None where it has none, or the reference lacks it."""
    if figure.limit is None or (figure.limit.times and figure.name not in start):
        return None
    return figure.limit.bound(start[figure.name].mean if figure.name in start else 0.0)


@dataclass(frozen=True)
class _Table:
    """Rows with their likeness and what they break, and the sentences about them."""

    rows: Sequence[Row]
    likeness: Sequence[Value]
    breaks: Sequence[Sequence[Broken]]

    def reason(self, chosen: int, best: int) -> str:
        """Why this row."""
        found, told = self.likeness, f"its likeness is {self.likeness[chosen].mean:.3f}"
        others = [broken for number, broken in enumerate(self.breaks) if number not in (0, chosen)]
        if others and all(others) and not self.breaks[chosen]:
            return f"{told}, and it alone keeps every limit"
        if len(self.rows) > 2 and chosen == best:
            told += ", the best"
        elif chosen != best:
            told += f", within the noise (±{found[best].error:.3f}) of the best, {found[best].mean:.3f} at"
            told += f" {self.rows[best].label}, and it trained less"
        if self.breaks[chosen]:
            fewer = ", and no other breaks fewer" if others else ""
            return f"{told}; it breaks {len(self.breaks[chosen])} of the limits{fewer}"
        if any(others):
            return f"{told} of those that keep every limit" if chosen == best else f"{told}; both keep every limit"
        return f"{told}, and every limit is kept"

    def overfit(self, chosen: int) -> str:
        """What goes wrong at this row or after it: each figure where it first breaks its limit."""
        first = next((number for number in range(chosen, len(self.rows)) if self.breaks[number]), None)
        if first is None:
            return ""
        told: dict[str, str] = {}
        for number in range(first, len(self.rows)):
            for one in self.breaks[number]:
                told.setdefault(one.figure.name, f"{one} at {self.rows[number].label}")
        last, now = self.likeness[-1].mean, self.likeness[chosen].mean
        rises = f"likeness still rises, to {last:.3f} at {self.rows[-1].label}, but " if last > now else ""
        remedy = "Keep to the earlier checkpoint" if first > chosen else "Train anew with fewer steps or a lower rate"
        prior = any(one.figure.prior for number in range(first, len(self.rows)) for one in self.breaks[number])
        return f"{rises}{'; '.join(told.values())}. {remedy}{_PRIOR if prior else ''}."

    def little_learned(self, chosen: int) -> str:
        """A remark where the subject is hardly there."""
        start, now = self.likeness[0], self.likeness[chosen]
        if now.mean - start.mean > math.hypot(now.error, start.error):
            return ""
        told = f"{now.mean:.3f} at {self.rows[chosen].label} and {start.mean:.3f} at {self.rows[0].label}"
        return f"little was learned: likeness is {told}; train longer, or at a higher rate"

    def still_rising(self, chosen: int) -> str:
        """A remark where training ended too early."""
        last = len(self.rows) - 1
        if chosen != last or last < 2:
            return ""
        gain = self.likeness[last].mean - self.likeness[last - 1].mean
        if gain <= math.hypot(self.likeness[last].error, self.likeness[last - 1].error):
            return ""
        return f"likeness still rises (by {gain:.3f} since {self.rows[last - 1].label}): more steps may help"


_PRIOR = "; prior preservation (the setting prior.class_images) helps against it"
