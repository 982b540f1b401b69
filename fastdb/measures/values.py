"""Figures of pictures with their values and limits, and the interface of a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from fastdb.measures.intervals import Interval, mean_interval, share_difference, share_interval
from fastdb.measures.shots import Shot
from fastdb.reporting import Note


@dataclass(frozen=True)
class Value:
    """A figure of a checkpoint, the mean of its readings or a difference of two means.

    Attributes:
        low, high: bounds of its interval at 95 %; None if a single reading or its definition leaves none.
        count: number of readings.
        readings: by the number of the picture, so that two checkpoints are compared picture by picture.
        share: whether each reading is 0 or 1.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    count: int = 1
    readings: Mapping[int, float] = field(default_factory=dict, repr=False, compare=False)
    share: bool = False

    def __str__(self) -> str:
        """Return the mean with its interval, such as `0.703 [0.61, 0.78]`."""
        if self.low is None or self.high is None or self.low == self.high:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.2f}, {self.high:.2f}]"

    def __sub__(self, other: Value) -> Value:
        """Return the difference on the pictures that both have.

        Raises:
            ValueError: they have no picture in common.
        """
        common = self.readings.keys() & other.readings.keys()
        if not common:
            raise ValueError("no picture in common")
        now, start = ([value.readings[picture] for picture in sorted(common)] for value in (self, other))
        gains = {picture: self.readings[picture] - other.readings[picture] for picture in sorted(common)}
        if self.share and other.share:
            interval: Interval | None = share_difference([bool(one) for one in now], [bool(one) for one in start])
        else:
            interval = mean_interval(list(gains.values()))
        mean = sum(gains.values()) / len(gains)
        low, high = interval or (None, None)
        return Value(mean, low, high, len(gains), gains)


def values_of(readings: Mapping[str, Mapping[int, float | bool]]) -> dict[str, Value]:
    """Return the value of each figure that has readings, given by the numbers of their pictures.

    Shares, whose readings are all bool, have Wilson's interval, means that of a bootstrap over the pictures.
    """
    values = {}
    for name, by_picture in readings.items():
        numbers = list(by_picture.values())
        if not numbers:
            continue
        share = all(isinstance(number, bool) for number in numbers)
        interval = share_interval(sum(map(bool, numbers)), len(numbers)) if share else mean_interval(numbers)
        plain = {picture: float(number) for picture, number in by_picture.items()}
        low, high = interval or (None, None)
        values[name] = Value(sum(numbers) / len(numbers), low, high, len(numbers), plain, share)
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
    """Values of a checkpoint by figure, and the readings of each of its pictures, which `shots` describe."""

    values: Mapping[str, Value]
    pictures: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    shots: Sequence[Shot] = field(default_factory=tuple)


class Unmeasured:
    """Measure of nothing, where no model is available: people compare the pictures."""

    name = "nothing"
    figures: tuple[Figure, ...] = ()

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Return no values."""
        return Measured({})

    def remarks(self) -> list[Note]:
        """Return nothing."""
        return []

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """Return no values."""
        return {}


class Measure(Protocol):
    """Interface of a measure of pictures, of which those of the untrained base are read first.

    Attributes:
        name: identifies the measure and its models in `evaluation.json`, where evaluations are compared by it.
        figures: the figures it can return, in the order of the table.
    """

    name: str
    figures: tuple[Figure, ...]

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure the pictures of a checkpoint; figures without pictures are left out."""

    def remarks(self) -> list[Note]:
        """Return what the pictures read so far show about the measure itself."""

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """Return the figures that compare a checkpoint with the untrained base."""
