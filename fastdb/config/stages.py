"""Settings of the stages: steps, learning rates, extensions, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from fastdb.config.validation import Settings
from fastdb.reporting import counted


class RateChange(Settings):
    """Learning rate of a part from a step of the UNet stage on, until its own steps or the present extension end."""

    after: int = Field(ge=1, le=1_000_000, description="Steps done before the first step with this rate.")
    learning_rate: float = Field(gt=0, le=0.1, description="Takes the place of the rate that the schedule begins with.")

    def __str__(self) -> str:
        return f"{self.learning_rate:g} after step {self.after}"


_CHANGES = Field(
    (),
    max_length=100,
    description="Rates from chosen steps on, which `fastdb train --from-step N --set unet.learning_rate=X` adds.",
)


_SETTLED = Field(
    (),
    max_length=100,
    description="Steps after which the steps then running ended before their last, which `stop.when` adds.",
)


@dataclass(frozen=True)
class Segment:
    """Steps with one schedule: `start` <= step < `end`, of which `planned` were to be done."""

    start: int
    end: int
    planned: int
    extension: Extension | None = None


class TextEncoderConfig(Settings):
    """Text encoder stage, in which the UNet is frozen unless `mode` is joint."""

    mode: Literal["first", "joint"] = Field(
        "first", description="first: in a stage of its own; joint: during the first `steps` steps of the UNet stage."
    )
    steps: int = Field(350, ge=0, le=100_000, description="Optimizer steps; 0 does not train the text encoder.")
    learning_rate: float = Field(
        1e-6, gt=0, le=0.1, description="Learning rate of the first step; falls linearly to 0."
    )
    rate_changes: tuple[RateChange, ...] = _CHANGES
    settled_after: tuple[int, ...] = _SETTLED

    @property
    def segments(self) -> list[Segment]:
        """The own steps."""
        return _segments(self.steps, (), self.settled_after)

    @property
    def all_steps(self) -> int:
        """Optimizer steps until the stage ends."""
        return self.segments[-1].end


class Extension(Settings):
    """Further steps of the UNet stage, with the formulas in `training/schedules.py`."""

    steps: int = Field(ge=1, le=100_000, description="Optimizer steps.")
    schedule: Literal["hold", "rewarm", "decay"] = Field(
        description="hold: constant rate; decay: falls to 0; rewarm: rises during the first tenth, then falls to 0."
    )
    learning_rate: float = Field(gt=0, le=0.1, description="Highest learning rate.")

    def __str__(self) -> str:
        return f"{counted(self.steps, 'step')}, {self.schedule} at {self.learning_rate:g}"


class UNetConfig(Settings):
    """UNet stage, in which the text encoder is frozen unless its mode is joint."""

    steps: int = Field(1500, ge=0, le=100_000, description="Optimizer steps; 0 does not train the UNet.")
    learning_rate: float = Field(
        2e-6, gt=0, le=0.1, description="Learning rate of the first step; falls linearly to 0."
    )
    rate_changes: tuple[RateChange, ...] = _CHANGES
    ema_decay: float = Field(
        0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights that is exported; 0 exports the last weights.",
    )
    ema_on_cpu: bool = Field(
        False,
        description="Keep the moving average in the CPU's memory, which saves 4 bytes per weight on the GPU and takes "
        "time; the result is the same.",
    )
    extensions: tuple[Extension, ...] = Field(
        (),
        max_length=100,
        description="Further steps that `fastdb extend` adds, each with `steps`, `schedule` and `learning_rate`.",
    )
    settled_after: tuple[int, ...] = _SETTLED

    @property
    def segments(self) -> list[Segment]:
        """The own steps and each extension."""
        return _segments(self.steps, self.extensions, self.settled_after)

    @property
    def all_steps(self) -> int:
        """Optimizer steps, extensions included, until the stage ends."""
        return self.segments[-1].end


def _segments(steps: int, extensions: Sequence[Extension], settled: Sequence[int]) -> list[Segment]:
    segments, start = [], 0
    for planned, extension in ((steps, None), *((extension.steps, extension) for extension in extensions)):
        end = next((step for step in settled if start < step < start + planned), start + planned)
        segments.append(Segment(start, end, planned, extension))
        start = end
    return segments
