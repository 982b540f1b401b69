"""Status of a training, computed from its events: stage, rate, time left, smoothed loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastdb.reporting import format_bytes

STAGE_TITLES = {"text_encoder": "Text encoder", "unet": "UNet", "instance": "Instance prompt", "class": "Class prompt"}
SMOOTHING = 0.95
"""Weight of the past in the smoothed loss: a mean over about 20 steps, since one step mostly shows its timestep."""
_RATE_STEPS = 30
_MOST_POINTS = 400


@dataclass
class StageStatus:
    """Progress of one stage."""

    name: str
    steps: int
    step: int = 0
    loss: float | None = None
    """Smoothed."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps with the smoothed loss, thinned to at most 400."""
    checks: dict[int, dict[str, float]] = field(default_factory=dict)
    """Losses on fixed noise by step, each by the group of images."""
    seconds_per_step: float | None = None
    times: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RATE_STEPS), repr=False)
    _every: int = 1

    @property
    def title(self) -> str:
        """Name of the stage for people."""
        return STAGE_TITLES.get(self.name, self.name)

    def resume(self, step: int) -> None:
        """Continue after `step`; the curve of later steps belonged to checkpoints that are not used."""
        self.step = step
        self.curve = [point for point in self.curve if point[0] <= step]
        self.checks = {at: losses for at, losses in self.checks.items() if at <= step}
        self.loss = self.curve[-1][1] if self.curve else None
        self.times.clear()

    def fixed_noise(self) -> str:
        """Return the first and last loss of each group, `instance 0.2110 -> 0.1520`; empty before the second."""
        if len(self.checks) < 2:
            return ""
        first, last = (self.checks[step] for step in (min(self.checks), max(self.checks)))
        return ", ".join(f"{name} {first[name]:.4f} -> {loss:.4f}" for name, loss in last.items() if name in first)

    def advance(self, event: dict[str, Any]) -> None:
        """Receive a `step` event."""
        self.step, self.steps = event["step"], event["steps"]
        if math.isfinite(event["loss"]):
            self.loss = event["loss"] if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * event["loss"]
            if self.step % self._every == 0 or not self.curve:
                self.curve.append((self.step, self.loss))
        if len(self.curve) > _MOST_POINTS:
            self._every *= 2
            self.curve = self.curve[::2]
        self.times.append((self.step, event.get("time", 0.0)))
        (first, began), (last, now) = self.times[0], self.times[-1]
        if last > first and now > began:
            self.seconds_per_step = (now - began) / (last - first)
        elif self.seconds_per_step is None:
            self.seconds_per_step = event.get("seconds")


class TrainingStatus:
    """Follows the events of a trainer; see `fastdb.sessions.events`."""

    def __init__(self, earlier: Iterable[dict[str, Any]] = ()) -> None:
        """Start empty, or with the loss curves of earlier runs."""
        self.stages: dict[str, StageStatus] = {}
        self.current: StageStatus | None = None
        self.task, self.task_unit = "", "it"
        self.task_done = self.task_total = 0
        self.outcome = ""
        for event in earlier:
            # Logs may come from elsewhere; a malformed line is no reason not to train.
            with suppress(KeyError, TypeError, ValueError):
                if event["event"] in ("stage", "step", "check"):
                    self.event(event)
        self.current = None

    def event(self, event: dict[str, Any]) -> None:
        """Receive an event; kinds that say nothing about progress are ignored."""
        kind = event["event"]
        if kind == "plan" and "stages" in event:
            for name, plan in event["stages"].items():
                stage = self._stage(name, plan["steps"])
                stage.steps = plan["steps"]
                stage.resume(min(plan.get("done", 0), plan["steps"]))
        elif kind == "progress":
            self.begin_task(event["task"])
            self.task_done, self.task_total = event["done"], event["total"]
        elif kind == "stage":
            self.task, self.outcome = "", ""
            self.current = self._stage(event["stage"], event["steps"])
            self.current.steps = event["steps"]
            self.current.resume(event["step"])
        elif kind == "step":
            self.task = ""
            self.current = self._stage(event["stage"], event["steps"])
            self.current.advance(event)
        elif kind == "check" and self.current is not None:
            self.current.checks[event["step"]] = event["losses"]
        elif kind == "end":
            self.task, self.outcome = "", event["outcome"]

    def begin_task(self, task: str, unit: str = "it") -> None:
        """Show a task of unknown length; the unit `B` is bytes."""
        if task != self.task:
            self.task, self.task_unit, self.task_done, self.task_total = task, unit, 0, 0

    @property
    def rate(self) -> float | None:
        """Steps per second of the current stage, over its last steps."""
        seconds = self.current.seconds_per_step if self.current else None
        return 1 / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last stage ends; a stage that has not begun is taken to be as fast as the current one."""
        if self.current is None or self.current.seconds_per_step is None:
            return None
        return sum(
            (stage.steps - stage.step) * (stage.seconds_per_step or self.current.seconds_per_step)
            for stage in self.stages.values()
            if stage.step < stage.steps
        )

    def numbers(self) -> list[str]:
        """Return rate and loss, as far as they are known."""
        found = [f"{self.rate:.1f} it/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s/it"] if self.rate else []
        if self.current is not None and self.current.loss is not None:
            found.append(f"loss {self.current.loss:.4f}")
        return found

    def line(self) -> str:
        """Return one line: `UNet 40/220, 2.1 it/s, loss 0.1042, about 2 min left`; empty before the first event."""
        if self.task:
            done, total = self.task_done, self.task_total
            if self.task_unit == "B" and total:
                return f"{self.task} {format_bytes(done)} of {format_bytes(total)}"
            return f"{self.task} {done}/{total}" if total else self.task
        if self.current is None:
            return ""
        parts = [f"{self.current.title} {self.current.step}/{self.current.steps}", *self.numbers()]
        if not self.outcome and self.seconds_left is not None:
            parts.append(f"{about(self.seconds_left)} left")
        return ", ".join(parts)

    def _stage(self, name: str, steps: int) -> StageStatus:
        return self.stages.setdefault(name, StageStatus(name, steps))


def about(seconds: float) -> str:
    """Return a duration in words: `about 40 s`, `about 12 min`, `about 1 h 20 min`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"
