"""What a measure is: it reads the pictures of one checkpoint and gives figures, each of which says what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from fastdb.evaluation.prompts import Shot


@dataclass(frozen=True)
class Value:
    """A mean over `count` readings and its standard error; a value without spread has the error 0."""

    mean: float
    error: float = 0.0
    count: int = 1


def value_of(readings: Sequence[float]) -> Value | None:
    """The mean of readings with its standard error s / sqrt(n), s with n - 1 in the denominator; None of none."""
    count = len(readings)
    if not count:
        return None
    mean = sum(readings) / count
    spread = math.sqrt(sum((reading - mean) ** 2 for reading in readings) / (count - 1)) if count > 1 else 0.0
    return Value(mean, spread / math.sqrt(count), count)


def difference(now: Value, start: Value) -> Value:
    """`now` minus `start`, with the error of a difference of two independent means."""
    return Value(now.mean - start.mean, math.hypot(now.error, start.error), now.count)


@dataclass(frozen=True)
class Limit:
    """How far a figure may go: to `times` its value at step 0 plus `plus`."""

    times: float = 0.0
    plus: float = 0.0

    def bound(self, start: float) -> float:
        """The last value that is still good."""
        return self.times * start + self.plus


@dataclass(frozen=True)
class Figure:
    """What a figure is called and means.

    Attributes:
        about: what it is, a clause.
        goal: whether the best checkpoint is the one with most of it.
        limit: what a good checkpoint keeps to.
        broken: what it means when that limit is broken, a clause.
        prior: whether prior preservation would help then.
    """

    name: str
    about: str
    higher_is_better: bool
    goal: bool = False
    limit: Limit | None = None
    broken: str = ""
    prior: bool = False


@dataclass(frozen=True)
class Taken:
    """A picture, and what it was drawn for."""

    shot: Shot
    picture: Image


@dataclass(frozen=True)
class Measured:
    """What one checkpoint's pictures show: values by figure, and what was read from each picture, in their order."""

    values: Mapping[str, Value]
    pictures: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class Measure(Protocol):
    """Turns pictures into figures."""

    @property
    def about(self) -> str:
        """What measures, and how it was set up: a line for the report."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures it may give, in the order to show them."""

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure the pictures of one checkpoint; a figure whose prompts were not asked for is left out."""

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """The figures that hold a checkpoint against the untrained base's."""


def gathered(readings: Mapping[str, Sequence[float]]) -> dict[str, Value]:
    """The values of those figures that have readings."""
    found = {name: value_of(numbers) for name, numbers in readings.items()}
    return {name: value for name, value in found.items() if value is not None}
