"""Figures of pictures with their values and limits, and the interface of a measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from fastdb.evaluation.prompts import Shot


@dataclass(frozen=True)
class Value:
    """A mean over `count` readings and its standard error, 0 for a value without spread."""

    mean: float
    error: float = 0.0
    count: int = 1

    def __sub__(self, other: Value) -> Value:
        """Return the difference of two independent means, with its error."""
        return Value(self.mean - other.mean, math.hypot(self.error, other.error), self.count)


def values_of(readings: Mapping[str, Sequence[float]]) -> dict[str, Value]:
    """Return the value of each figure that has readings.

    The standard error is s / sqrt(n), s with n - 1 in the denominator.
    """
    values = {}
    for name, numbers in readings.items():
        count = len(numbers)
        if count:
            mean = sum(numbers) / count
            squares = sum((number - mean) ** 2 for number in numbers)
            spread = math.sqrt(squares / (count - 1)) if count > 1 else 0.0
            values[name] = Value(mean, spread / math.sqrt(count), count)
    return values


@dataclass(frozen=True)
class Limit:
    """Last good value of a figure, `times` its value at step 0 plus `plus`."""

    times: float = 0.0
    plus: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A number measured for each checkpoint.

    Attributes:
        about: its definition, a clause.
        goal: whether the checkpoint is chosen by it.
        limit: the bound that a good checkpoint keeps.
        broken: the meaning of a broken limit, a clause.
        prior: whether prior preservation helps against a broken limit.
    """

    name: str
    about: str
    higher_is_better: bool
    goal: bool = False
    limit: Limit | None = None
    broken: str = ""
    prior: bool = False

    @property
    def better(self) -> str:
        """The direction of improvement, `higher` or `lower`."""
        return "higher" if self.higher_is_better else "lower"

    def bound(self, start: Mapping[str, Value]) -> float | None:
        """Return the limit as a number, given the values at step 0; None without a limit or the value it needs."""
        if self.limit is None or (self.limit.times and self.name not in start):
            return None
        reference = start[self.name].mean if self.name in start else 0.0
        return self.limit.times * reference + self.limit.plus


@dataclass(frozen=True)
class Taken:
    """A picture with its shot."""

    shot: Shot
    picture: Image


@dataclass(frozen=True)
class Measured:
    """Values of a checkpoint by figure, and the readings of each of its pictures in their order."""

    values: Mapping[str, Value]
    pictures: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class Measure(Protocol):
    """Interface of a measure of pictures.

    Attributes:
        name: identifies the measure and its models in `evaluation.json`, where evaluations are compared by it.
        figures: the figures it can return, in the order of the table.
    """

    name: str
    figures: tuple[Figure, ...]

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure the pictures of a checkpoint; figures without pictures are left out."""

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """Return the figures that compare a checkpoint with the untrained base."""
