"""The training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.config import Config
from fastdb.errors import TrainingError
from fastdb.training.batches import Batch, Batches, generator
from fastdb.training.divergence import MOST_SKIPPED, Divergence
from fastdb.training.fused_backward import FusedBackward
from fastdb.training.loss import add_noise, denoising_loss, row_loss, timestep_weights
from fastdb.training.movement import Movement
from fastdb.training.optimizers import make_optimizer
from fastdb.training.stages import Stage


@dataclass(frozen=True)
class StepReport:
    """Figures of an optimizer step.

    Attributes:
        loss, prior_loss: means over its microbatches.
        learning_rate: of the part that the stage is named after.
        batch: a hash of the latents, noise, timesteps and prompts of its microbatches, in hex.
        skipped: the gradient scaler left the weights unchanged.
    """

    step: int
    loss: float
    prior_loss: float
    learning_rate: float
    seconds: float
    batch: str
    skipped: bool = False


@dataclass
class Loop:
    """The training loop of a stage, prepared for the device.

    Attributes:
        losses: of each step done, counted from 1.
        done: steps done; weights and moments are those after it unless `changing` is set.
        changing: weights and moments are being changed.
        share: the share of the memory that is being allocated, "activations", "moments" or "average".
    """

    accelerator: Accelerator
    stage: Stage
    optimizer: torch.optim.Optimizer
    batches: Batches
    scheduler: DDPMScheduler
    config: Config
    losses: dict[int, float] = field(default_factory=dict)
    optimizer_name: str = "adamw"
    done: int = 0
    changing: bool = False
    share: str = "activations"
    _fused: FusedBackward | None = None

    def __post_init__(self) -> None:
        if self.config.optimizer.fused_backward_pass:
            self._fused = FusedBackward(getattr(self.optimizer, "optimizer", self.optimizer), self._begin_update)

    def run(self, start: int, after_step: Callable[[StepReport], bool]) -> int:
        """Train from `start` done steps until the stage ends or `after_step` returns True; return the steps done.

        Raises:
            TrainingError: no step changes the weights.
            Divergence: loss or gradient are not finite; that step has not changed the weights, unless the update is
                fused into the backward pass.
        """
        steps, config = self.stage.steps, self.config
        movement = Movement(
            self.stage.name, {part: self.stage.weights(part) for part in self.stage.trained}, self.stage.method.rate
        )
        self._check_accumulation()
        self.done = start
        for step in range(start, steps):
            began = time.perf_counter()
            rates = self.stage.begin_step(step)
            for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
                group["lr"] = rate
            # What a model draws by itself (dropout) is a function of the step too.
            torch.manual_seed(generator(config.seed, self.stage.name, step, "model").initial_seed())
            batches = [self.batches.at(step, number) for number in range(config.gradient_accumulation)]
            movement.before_step(rates)
            losses = [self._microstep(step, batch, batch is batches[-1]) for batch in batches]
            movement.after_step(rates, self.stage.skipped > 0, step + 1 == steps)
            loss, prior = (sum(part) / len(losses) for part in zip(*losses, strict=True))
            self.losses[step + 1] = loss
            self.stage.losses.append(loss)
            if self.stage.average is not None:
                self.share = "average"
                self.stage.average.update()
            self.done, self.changing, self.share = step + 1, False, "activations"
            seconds = time.perf_counter() - began
            rate, skipped = rates[self.stage.name], self.stage.skipped > 0
            report = StepReport(step + 1, loss, prior, rate, seconds, _digest(batches), skipped)
            if after_step(report):
                return step + 1
        return steps

    def probe(self) -> None:
        """Run a step's operations without a change of weights and moments, to find a GPU's limits before training.

        Raises:
            torch.OutOfMemoryError: the memory is too small.
            RuntimeError: torch refuses an operation that is not deterministic.
        """
        try:
            with self._fused.discards() if self._fused is not None else nullcontext():
                self._backward(0, self.batches.at(0, 0), update=False)
            torch.nn.utils.clip_grad_norm_(self.stage.all_weights, self._largest_norm)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        # 4,096 weights are enough for 8-bit moments.
        weight = torch.nn.Parameter(torch.zeros(4096, device=self.accelerator.device))
        weight.grad = torch.ones_like(weight)
        make_optimizer(self.optimizer_name, [[weight]], self.config.optimizer).step()

    @property
    def _largest_norm(self) -> float:
        return self.config.optimizer.max_grad_norm or math.inf

    def _microstep(self, step: int, batch: Batch, last: bool) -> tuple[float, float]:
        """Add the gradient of a microbatch; the last of a step also changes the weights."""
        accelerator, stage = self.accelerator, self.stage
        with accelerator.accumulate(*stage.trained.values()):
            whole, instance, prior = self._backward(step, batch, update=last)
            value = instance if math.isfinite(whole) else whole
            if self._fused is not None:
                if last and not math.isfinite(self._fused.gradient_norm()):
                    raise Divergence(f"the gradient of step {step + 1} is not finite, and has changed weights already")
                return value, prior
            if accelerator.scaler is None:
                self._check_loss(step, whole)
            if accelerator.sync_gradients:
                self._clip_gradient(step)
                self._begin_update()
            self.optimizer.step()
            # The first gradient of a step is taken over then, instead of being added to zeros.
            self.optimizer.zero_grad(set_to_none=True)
        return value, prior

    def _backward(self, step: int, batch: Batch, *, update: bool) -> tuple[float, float, float]:
        """Add the gradient of a microbatch, and return its loss and the parts of instance and class images.

        Args:
            update: whether the step ends with it, so that a fused update changes the weights.

        Raises:
            Divergence: the loss is not finite, and the backward pass would change the weights.
        """
        sums = [0.0, 0.0, 0.0]
        parts = list(batch.rows()) if self.config.split_batches else [batch]
        for part in parts:
            losses = self.loss(part) if part is batch else self._row_loss(part, batch)
            updates: AbstractContextManager[None] = nullcontext()
            if self._fused is not None and update and part is parts[-1]:
                self._check_loss(step, sums[0] + float(losses[0].detach()))
                updates = self._fused.updates()
            with updates:
                self.accelerator.backward(losses[0])
            sums = [total + float(loss.detach()) for total, loss in zip(sums, losses, strict=True)]
            del losses
        return sums[0], sums[1], sums[2]

    def _begin_update(self) -> None:
        self.changing, self.share = True, "moments"

    def _check_loss(self, step: int, loss: float) -> None:
        """Raise if the loss of a step is not finite.

        Raises:
            Divergence: the step has not changed the weights.
        """
        if not math.isfinite(loss):
            self.losses[step + 1] = loss
            raise Divergence(f"the loss of step {step + 1} is not finite, so the step was not taken")

    def _row_loss(self, row: Batch, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what a row adds to the loss of its batch and to its two parts; the sums are those of `loss`."""
        prediction, target, weights = self._predict(row)
        count = batch.instances if row.instances else len(batch.prompts) - batch.instances
        part = row_loss(prediction, target, count, weights)
        if row.instances:
            return part, part, torch.zeros_like(part)
        return self.config.prior.weight * part, torch.zeros_like(part), part

    def _check_accumulation(self) -> None:
        """Raise if accelerate steps the optimizer after another number of microbatches than the settings say.

        Raises:
            TrainingError: naming the variable that changes accelerate's number.
        """
        theirs, ours = self.accelerator.gradient_accumulation_steps, self.config.gradient_accumulation
        if theirs != ours:
            raise TrainingError(
                f"accelerate accumulates {theirs} forward passes per step, and gradient_accumulation is {ours}",
                where=f"{self.stage.name} stage",
                fix="Remove ACCELERATE_GRADIENT_ACCUMULATION_STEPS from the setting environment.pass.",
            )

    def _clip_gradient(self, step: int) -> None:
        """Clip the gradient's norm, and count steps in a row whose gradient is not finite.

        A gradient scaler skips such a step and halves its scale, as it does after each increase that was too large.

        Raises:
            Divergence: the gradient is not finite, and nothing or too much has been skipped.
        """
        stage = self.stage
        norm = self.accelerator.clip_grad_norm_(stage.all_weights, self._largest_norm)
        if math.isfinite(float(norm)):
            stage.skipped = 0
            return
        if self.accelerator.scaler is None:
            raise Divergence(f"the gradient of step {step + 1} is not finite, so the step was not taken")
        stage.skipped += 1
        if stage.skipped >= MOST_SKIPPED:
            raise Divergence(f"the gradients of {MOST_SKIPPED} steps in a row, up to step {step + 1}, are not finite")

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of a batch, its instance images' part and its class images' part; see `denoising_loss`."""
        prediction, target, weights = self._predict(batch)
        return denoising_loss(prediction, target, batch.instances, self.config.prior.weight, weights)

    def _predict(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the UNet's prediction, its target, and the weight of each row's error."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            conditioning = self.stage.condition(batch.prompts)
            noised = add_noise(
                self.scheduler, batch.latents.to(device), batch.noise.to(device), batch.timesteps.to(device)
            )
            prediction = self.stage.unet(noised.latents, noised.timesteps, conditioning, return_dict=False)[0]
        weights = timestep_weights(self.scheduler, noised.timesteps, self.config.min_snr_gamma)
        return prediction, noised.target, weights


def _digest(batches: Iterable[Batch]) -> str:
    """Return a short hash of some microbatches in hex; equal hashes mean that training saw the same."""
    whole = hashlib.blake2b(digest_size=8)
    for batch in batches:
        whole.update(repr(batch.prompts).encode())
        for numbers in (batch.latents, batch.noise, batch.timesteps):
            whole.update(numbers.numpy().tobytes())
    return whole.hexdigest()
