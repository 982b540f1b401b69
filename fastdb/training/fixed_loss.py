"""Loss on fixed images, noises and timesteps, and the decision that a stage has settled.

The training loss varies with the timesteps and noises of each step far more than it falls. Measured on the same ones it
shows small changes: with common random numbers the difference of two steps has little variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from fastdb.config import Config, StopConfig
from fastdb.training.batches import HELD_OUT, INSTANCE, Batch, Group, generator
from fastdb.training.loop import Loop
from fastdb.training.stages import Check

ROWS = 8
"""Fixed rows of each group of images, at timesteps in the middle of as many equal spans."""
_TIME = 0.03
"""Largest share of a stage's time; a training step costs at least two forward passes of its rows."""
LIKENESS = "likeness"
_MARGIN = 0.01
"""Least improvement, as a fraction of the best value so far."""


@dataclass(frozen=True)
class FixedLoss:
    """The rows to measure, in batches by group, every `every` steps; 0 measures nothing."""

    batches: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    every: int = 0

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to measure after a step."""
        return self.every > 0 and (step % self.every == 0 or step == steps)

    @torch.no_grad()
    def measure(self, loop: Loop) -> dict[str, float]:
        """Return the mean loss of each group's rows under the weights that the stage would export, if it is finite.

        Draws no random number and changes no weight, so the training ends in the same bytes.
        """
        with loop.stage.as_exported(loop.accelerator):
            losses = {name: fmean(float(loop.loss(batch)[0]) for batch in rows) for name, rows in self.batches.items()}
        # Half precision may overflow, and JSON has no infinity.
        return {name: loss for name, loss in losses.items() if math.isfinite(loss)}


def fixed_loss(groups: Sequence[Group], config: Config, timesteps: int) -> FixedLoss:
    """Return the rows of a session's images, the same in both stages and in every run.

    Args:
        timesteps: number of the scheduler's timesteps.
    """
    if not config.stop.check_loss:
        return FixedLoss()
    rows = sum(group.size for group in groups)
    # No forward pass is larger than in training.
    size = 1 if config.split_batches else next(size for size in (8, 4, 2, 1) if size <= rows)
    batches = {group.name: list(_batches(group, config.seed, timesteps, size)) for group in groups}
    step = 2 * rows * config.gradient_accumulation
    return FixedLoss(batches, config.stop.check_every or math.ceil(ROWS * len(groups) / (_TIME * step)))


def _batches(group: Group, seed: int, timesteps: int, size: int) -> Iterator[Batch]:
    """Yield the rows of a group in batches of at most `size`."""
    count, shape = len(group.latents), group.latents.mean.shape[1:]
    rows = []
    for number in range(ROWS):
        # All images if there are few, else some that are spread over them.
        image = number % count if count <= ROWS else number * count // ROWS
        numbers = generator(seed, "fixed loss", group.name, number)
        noise, posterior = (torch.randn(shape, generator=numbers) for _ in range(2))
        timestep = (2 * number + 1) * timesteps // (2 * ROWS)
        rows.append((group.latents.sample(image, posterior), noise, timestep, group.prompts[image]))
    for at in range(0, ROWS, size):
        latents, noises, times, prompts = zip(*rows[at : at + size], strict=True)
        yield Batch(torch.stack(latents), torch.stack(noises), torch.tensor(times), prompts, len(prompts))


def settled(checks: Sequence[Check], since: int, stop: StopConfig, *, pictures: bool = False) -> str:
    """Return why the steps from `since` on have settled, as a clause; empty while they improve or are too few.

    Loss and likeness each have `patience` checks without an improvement by 1 % over the best value before them.
    Where images are held out, their loss decides, which rises when the others are learned by heart.

    Args:
        pictures: whether the likeness of samples is measured.
    """
    losses, likenesses = [], []
    for check in checks:
        if check.step < since:
            continue
        if LIKENESS in check.figures:
            likenesses.append(check.figures[LIKENESS])
        elif INSTANCE in check.figures:
            losses.append(check.figures.get(HELD_OUT, check.figures[INSTANCE]))
    waited = [_since_improved(losses, lower=True)]
    if pictures:
        waited.append(_since_improved(likenesses, lower=False))
    if min(waited) < stop.patience:
        return ""
    clause = f"the loss on fixed noise has not improved by {_MARGIN:.0%} in {waited[0]} checks"
    return clause + (f", nor the likeness of samples in {waited[1]}" if pictures else "")


def _since_improved(values: Sequence[float], *, lower: bool) -> int:
    """Return the number of values after the last that was better than all before it by a fraction of the best."""
    best, at = None, 0
    for number, value in enumerate(values):
        if best is None or (value < best * (1 - _MARGIN) if lower else value > best + _MARGIN * abs(best)):
            best, at = value, number
    return max(0, len(values) - 1 - at)
