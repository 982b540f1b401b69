"""Choice of the checkpoint to use from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdb.measures.intervals import Interval, sum_interval
from fastdb.measures.values import Figure, Value
from fastdb.reporting import Note

MARGIN = 0.05
"""Likeness that an earlier checkpoint may lose, at 95 %, because less training changes less."""


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
        undecided: the rows between which more pictures would decide, of which `row` is the earliest; none if decided.
    """

    row: int
    label: str
    reason: str
    notes: tuple[Note, ...] = ()
    undecided: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Table:
    """Rows with their likeness and the descriptions of their broken limits by figure."""

    rows: Sequence[Row]
    goals: Sequence[str]
    likeness: Sequence[float]
    broken: Sequence[Mapping[str, str]]

    def gap(self, one: int, other: int) -> Interval:
        """Return the interval of the likeness of a row minus that of another, on the pictures that both have."""
        return _gap(self.rows[one].values, self.rows[other].values, self.goals)


def pick(rows: Sequence[Row], figures: Sequence[Figure]) -> Pick:
    """Choose a row other than the first, the reference.

    Rows within every limit are compared by their likeness, the mean of their goal figures, picture by picture. The
    earliest of which no other is better by more than `MARGIN`, at 95 %, is chosen. If an earlier one might be as good,
    the choice is undecided. If no row keeps every limit, the rows with the fewest broken limits are compared.

    Raises:
        ValueError: there is no row beside the reference.
    """
    if len(rows) < 2:
        raise ValueError("nothing to choose from")
    goals = [figure.name for figure in figures if figure.goal]
    likeness = [_likeness(row, goals) for row in rows]
    table = _Table(rows, goals, likeness, [_broken(row, rows[0], figures) for row in rows])
    fewest = min(len(broken) for broken in table.broken[1:])
    pool = [number for number in range(1, len(rows)) if len(table.broken[number]) == fewest]
    if not any(goal in row.values for row in rows for goal in goals):
        return Pick(pool[0], rows[pool[0]].label, "no prompt asks for the subject, so its likeness is unknown")
    chosen, undecided = _decide(table, pool)
    prior = {figure.name for figure in figures if figure.prior}
    notes = (*_overfit(table, chosen, prior), *_remarks(table, chosen))
    return Pick(chosen, rows[chosen].label, _reason(table, chosen, pool, undecided), notes, undecided)


def _decide(table: _Table, pool: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Return the row of a pool to use, and the rows in question."""
    gaps = {(one, other): table.gap(one, other) for one in pool for other in pool if one != other}

    def is_worse(number: int) -> bool:
        return any(gaps[number, other][1] < -MARGIN for other in pool if other != number)

    def is_enough(number: int) -> bool:
        return all(gaps[number, other][0] >= -MARGIN for other in pool if other != number)

    possible = [number for number in pool if not is_worse(number)] or list(pool)
    enough = next((place for place, number in enumerate(possible) if is_enough(number)), len(possible) - 1)
    return possible[0], tuple(possible[: enough + 1]) if enough else ()


def _likeness(row: Row, goals: Sequence[str]) -> float:
    """Return the mean of a row's goal figures; 0 without any."""
    means = [row.values[goal].mean for goal in goals if goal in row.values]
    return sum(means) / len(means) if means else 0.0


def _gap(now: Mapping[str, Value], start: Mapping[str, Value], goals: Sequence[str]) -> Interval:
    """Return the interval of a difference of likeness on common pictures.

    Pictures that count in the same figures are of one kind; each contributes the sum of its readings' differences,
    divided by the number of figures and of pictures of each.
    """
    gains = {goal: (now[goal] - start[goal]).readings for goal in goals if goal in now and goal in start}
    kinds: dict[frozenset[str], list[float]] = {}
    for picture in sorted({picture for by_picture in gains.values() for picture in by_picture}):
        counted = frozenset(goal for goal, by_picture in gains.items() if picture in by_picture)
        term = sum(gains[goal][picture] / len(gains[goal]) for goal in sorted(counted)) / len(gains)
        kinds.setdefault(counted, []).append(term)
    return sum_interval(
        [
            (terms, sum(1 / len(gains[goal]) for goal in counted if now[goal].share) / len(gains))
            for counted, terms in kinds.items()
        ]
    )


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


def _reason(table: _Table, chosen: int, pool: Sequence[int], undecided: Sequence[int]) -> str:
    """Return the clause that explains the choice."""
    likeness, broken = table.likeness, len(table.broken[chosen])
    others = [limits for number, limits in enumerate(table.broken) if number not in (0, chosen)]
    text = f"likeness {likeness[chosen]:.3f}"
    if others and all(others) and not broken:
        return f"{text}; the only checkpoint within every limit"
    best = max(pool, key=lambda number: likeness[number])
    if undecided:
        names = [table.rows[number].label for number in undecided]
        text += f", the earliest of those in question; undecided between {', '.join(names[:-1])} and {names[-1]}"
    elif chosen != best:
        text += (
            f", at most {MARGIN} below the best ({likeness[best]:.3f} at {table.rows[best].label}) after fewer steps"
        )
    elif len(pool) > 1:
        second = max((number for number in pool if number != chosen), key=lambda number: likeness[number])
        low, high = table.gap(second, chosen)
        text += f", the best; {table.rows[second].label} has {likeness[second]:.3f} ({low:+.2f} to {high:+.2f})"
    elif others:
        text += ", the best"
    if broken:
        return f"{text}; {broken} broken limit{'s' * (broken > 1)}" + (", the fewest" if others else "")
    if any(others):
        return f"{text}; checkpoints that break a limit were not compared"
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
    last = table.likeness[-1]
    if last > table.likeness[chosen]:
        notes.append(Note("overfit likeness", table.rows[-1].label, f"{last:.3f}"))
    if prior & set(broken):
        notes.append(Note("overfit prior", "prior.class_images"))
    return notes


def _remarks(table: _Table, chosen: int) -> list[Note]:
    """Return remarks about training that was too short."""
    notes = []
    start, now, last = table.likeness[0], table.likeness[chosen], len(table.rows) - 1
    if table.gap(chosen, 0)[0] <= 0:
        numbers = f"likeness {now:.3f} at {table.rows[chosen].label}, {start:.3f} at {table.rows[0].label}"
        notes.append(Note("little learned", table.rows[chosen].label, numbers))
    if chosen == last and last >= 2 and table.gap(last, last - 1)[0] > 0:
        gain = table.likeness[last] - table.likeness[last - 1]
        notes.append(Note("likeness rising", table.rows[last - 1].label, f"{gain:.3f}"))
    return notes
