"""The training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.config import Config
from fastdb.errors import TrainingError
from fastdb.training.batches import Batch, Batches, generator
from fastdb.training.loss import add_noise, denoising_loss, timestep_weights
from fastdb.training.movement import Movement
from fastdb.training.stages import Stage


@dataclass(frozen=True)
class StepReport:
    """Figures of an optimizer step.

    Attributes:
        loss, prior_loss: means over its microbatches.
        learning_rate: of the part that the stage is named after.
        batch: a hash of the latents, noise, timesteps and prompts of its microbatches, in hex.
    """

    step: int
    loss: float
    prior_loss: float
    learning_rate: float
    seconds: float
    batch: str


@dataclass
class Loop:
    """The training loop of a stage, prepared for the device."""

    accelerator: Accelerator
    stage: Stage
    optimizer: torch.optim.Optimizer
    batches: Batches
    scheduler: DDPMScheduler
    config: Config

    def run(self, start: int, after_step: Callable[[StepReport], bool]) -> int:
        """Train from `start` done steps until the stage ends or `after_step` returns True; return the steps done.

        Raises:
            TrainingError: the loss is not finite, and that step has not changed the weights; or no step changes them.
        """
        steps, config = self.stage.steps, self.config
        movement = Movement(self.stage.name, self.stage.trained)
        self._check_accumulation()
        for step in range(start, steps):
            began = time.perf_counter()
            rates = self.stage.begin_step(step)
            for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
                group["lr"] = rate
            # What a model draws by itself (dropout) is a function of the step too.
            torch.manual_seed(generator(config.seed, self.stage.name, step, "model").initial_seed())
            batches = [self.batches.at(step, number) for number in range(config.gradient_accumulation)]
            movement.before_step(rates)
            losses = [self._microstep(step, batch) for batch in batches]
            movement.after_step(rates, self.accelerator.optimizer_step_was_skipped, step + 1 == steps)
            loss, prior = (sum(part) / len(losses) for part in zip(*losses, strict=True))
            if self.stage.average is not None:
                self.stage.average.update()
            seconds = time.perf_counter() - began
            report = StepReport(step + 1, loss, prior, rates[self.stage.name], seconds, _digest(batches))
            if after_step(report):
                return step + 1
        return steps

    def probe(self) -> str:
        """Run a forward and backward pass without an optimizer step, to find a GPU's limits before training.

        Returns:
            The operation that the device cannot compute deterministically, or ""; torch may then compute it anyway.

        Raises:
            torch.OutOfMemoryError: the memory is too small.
        """
        try:
            self.loss(self.batches.at(0, 0))[0].backward()
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            torch.use_deterministic_algorithms(True, warn_only=True)
            return str(error).splitlines()[0]
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return ""

    def _microstep(self, step: int, batch: Batch) -> tuple[float, float]:
        """Add the gradient of a microbatch; the last of a step also changes the weights."""
        accelerator, stage = self.accelerator, self.stage
        with accelerator.accumulate(*stage.trained.values()):
            loss, instance, prior = self.loss(batch)
            accelerator.backward(loss)
            value = float(instance.detach())
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"the loss of step {step + 1} is not finite, so the step was not taken",
                    where=f"{stage.name} stage",
                    fix="Lower its learning rate, or set precision to fp32; the last checkpoint is good.",
                )
            if accelerator.sync_gradients:
                weights = [weight for module in stage.trained.values() for weight in module.parameters()]
                accelerator.clip_grad_norm_(weights, self.config.optimizer.max_grad_norm)
            self.optimizer.step()
            # On a CPU, allocating fresh memory costs more than zeroing; on a GPU, the free memory matters more.
            self.optimizer.zero_grad(set_to_none=accelerator.device.type != "cpu")
        return value, float(prior.detach())

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

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of a batch, its instance images' part and its class images' part; see `denoising_loss`."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            conditioning = self.stage.condition(batch.prompts)
            noised = add_noise(
                self.scheduler, batch.latents.to(device), batch.noise.to(device), batch.timesteps.to(device)
            )
            prediction = self.stage.unet(noised.latents, noised.timesteps, conditioning, return_dict=False)[0]
        weights = timestep_weights(self.scheduler, noised.timesteps, self.config.min_snr_gamma)
        return denoising_loss(prediction, noised.target, batch.instances, self.config.prior.weight, weights)


def _digest(batches: Iterable[Batch]) -> str:
    """Return a short hash of some microbatches in hex; equal hashes mean that training saw the same."""
    whole = hashlib.blake2b(digest_size=8)
    for batch in batches:
        whole.update(repr(batch.prompts).encode())
        for numbers in (batch.latents, batch.noise, batch.timesteps):
            whole.update(numbers.numpy().tobytes())
    return whole.hexdigest()
