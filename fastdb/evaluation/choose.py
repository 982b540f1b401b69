"""Choice of the checkpoint to use from its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdb.evaluation.measures import Figure, Value
from fastdb.reporting import Note


@dataclass(frozen=True)
class Row:
    """The figures of a checkpoint; the first row of a table is the untrained base."""

    label: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Pick:
    """The row to use.

    Attributes:
        reason: a clause.
        notes: warnings about overfitting (kinds that begin with `overfit`) and remarks.
    """

    row: int
    label: str
    reason: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class _Table:
    """Rows with their likeness and the descriptions of their broken limits by figure."""

    rows: Sequence[Row]
    likeness: Sequence[Value]
    broken: Sequence[Mapping[str, str]]


def pick(rows: Sequence[Row], figures: Sequence[Figure]) -> Pick:
    """Choose a row other than the first, the reference.

    Rows within every limit are compared by their likeness, the mean of their goal figures. Of those within one standard
    error of the best, the earliest is chosen (the one-standard-error rule of Breiman et al. 1984, section 3.4.3: less
    training changes less). If no row keeps every limit, the rows with the fewest broken limits are compared.

    Raises:
        ValueError: there is no row beside the reference.
    """
    if len(rows) < 2:
        raise ValueError("nothing to choose from")
    table = _Table(rows, [_likeness(row, figures) for row in rows], [_broken(row, rows[0], figures) for row in rows])
    fewest = min(len(broken) for broken in table.broken[1:])
    pool = [number for number in range(1, len(rows)) if len(table.broken[number]) == fewest]
    best = max(pool, key=lambda number: table.likeness[number].mean)
    enough = table.likeness[best].mean - table.likeness[best].error
    chosen = next(number for number in pool if table.likeness[number].mean >= enough)
    if not any(figure.goal and figure.name in row.values for row in rows for figure in figures):
        return Pick(chosen, rows[chosen].label, "no prompt asks for the subject, so its likeness is unknown")
    prior = {figure.name for figure in figures if figure.prior}
    notes = (*_overfit(table, chosen, prior), *_remarks(table, chosen))
    return Pick(chosen, rows[chosen].label, _reason(table, chosen, best), notes)


def _likeness(row: Row, figures: Sequence[Figure]) -> Value:
    """Return the mean of a row's goal figures with its error; 0 without goal figures."""
    values = [row.values[figure.name] for figure in figures if figure.goal and figure.name in row.values]
    if not values:
        return Value(0.0)
    error = math.sqrt(sum(value.error**2 for value in values)) / len(values)
    return Value(sum(value.mean for value in values) / len(values), error)


def _broken(row: Row, start: Row, figures: Sequence[Figure]) -> dict[str, str]:
    """Describe the figures of a row that are beyond their limit."""
    broken = {}
    for figure in figures:
        bound, value = figure.bound(start.values), row.values.get(figure.name)
        if bound is None or value is None:
            continue
        if value.mean < bound if figure.higher_is_better else value.mean > bound:
            limit = "at least" if figure.higher_is_better else "at most"
            numbers = f"{figure.name} {value.mean:.3f}, limit {limit} {bound:.3f}"
            broken[figure.name] = f"{figure.broken} at {row.label} ({numbers})"
    return broken


def _reason(table: _Table, chosen: int, best: int) -> str:
    """Return the clause that explains the choice."""
    likeness, broken = table.likeness, len(table.broken[chosen])
    others = [limits for number, limits in enumerate(table.broken) if number not in (0, chosen)]
    text = f"likeness {likeness[chosen].mean:.3f}"
    if others and all(others) and not broken:
        return f"{text}; the only checkpoint within every limit"
    if chosen != best:
        text += f", within the noise (±{likeness[best].error:.3f}) of the best"
        text += f" ({likeness[best].mean:.3f} at {table.rows[best].label}) after fewer steps"
    elif others:
        text += ", the best"
    if broken:
        return f"{text}; {broken} broken limit{'s' * (broken > 1)}" + (", the fewest" if others else "")
    if any(others):
        return f"{text} of the checkpoints within every limit"
    return f"{text}; every limit is kept"


def _overfit(table: _Table, chosen: int, prior: set[str]) -> list[Note]:
    """Return the warnings about the first row, from the chosen on, that breaks a limit, and about later rows."""
    first = next((number for number in range(chosen, len(table.rows)) if table.broken[number]), None)
    if first is None:
        return []
    broken: dict[str, str] = {}
    for limits in table.broken[first:]:
        broken |= {name: text for name, text in limits.items() if name not in broken}
    kind = "overfit" if first == chosen else "overfit later"
    notes = [Note(kind, table.rows[chosen].label, "; ".join(broken.values()))]
    last = table.likeness[-1].mean
    if last > table.likeness[chosen].mean:
        notes.append(Note("overfit likeness", table.rows[-1].label, f"{last:.3f}"))
    if prior & set(broken):
        notes.append(Note("overfit prior", "prior.class_images"))
    return notes


def _remarks(table: _Table, chosen: int) -> list[Note]:
    """Return remarks about training that was too short."""
    notes = []
    start, now, last = table.likeness[0], table.likeness[chosen], len(table.rows) - 1
    if now.mean - start.mean <= math.hypot(now.error, start.error):
        numbers = f"likeness {now.mean:.3f} at {table.rows[chosen].label}, {start.mean:.3f} at {table.rows[0].label}"
        notes.append(Note("little learned", table.rows[chosen].label, numbers))
    if chosen == last and last >= 2:
        gain = table.likeness[last] - table.likeness[last - 1]
        if gain.mean > gain.error:
            notes.append(Note("likeness rising", table.rows[last - 1].label, f"{gain.mean:.3f}"))
    return notes
