"""The one loop: batch, loss, step, report, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.config import Config
from fastdb.errors import TrainingError
from fastdb.training.batches import Batch, Batches, digest
from fastdb.training.loss import add_noise, denoising_loss, timestep_weights
from fastdb.training.optimizers import set_rates
from fastdb.training.randomness import generator
from fastdb.training.stages import Stage


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step was like; losses are means over its microbatches, the rate is its own part's."""

    step: int
    loss: float
    prior_loss: float
    learning_rate: float
    seconds: float
    batch: str
    """A hash of the latents, noise, timesteps and prompts of its microbatches, in hex."""


@dataclass
class Loop:
    """Everything the loop needs, prepared for the device."""

    accelerator: Accelerator
    stage: Stage
    optimizer: torch.optim.Optimizer
    batches: Batches
    scheduler: DDPMScheduler
    config: Config

    def run(self, start: int, after_step: Callable[[StepReport], bool]) -> int:
        """Train from `start` done steps on, until the stage is over or `after_step` says stop; returns the steps done.

        Raises:
            TrainingError: the loss is not finite; the weights have not moved by that step.
        """
        steps, config = self.stage.steps, self.config
        for step in range(start, steps):
            began = time.perf_counter()
            rates = self.stage.begin_step(step)
            set_rates(self.optimizer, rates.values())
            # Whatever a model draws by itself (dropout) is a function of the step too.
            torch.manual_seed(generator(config.seed, self.stage.name, step, "model").initial_seed())
            batches = [self.batches.at(step, number) for number in range(config.gradient_accumulation)]
            losses = [self._microstep(step, batch) for batch in batches]
            loss, prior = (sum(part) / len(losses) for part in zip(*losses, strict=True))
            if self.stage.average is not None:
                self.stage.average.update()
            rate, seen = rates[self.stage.name], digest(batches)
            report = StepReport(step + 1, loss, prior, rate, time.perf_counter() - began, seen)
            if after_step(report):
                return step + 1
        return steps

    def probe(self) -> str:
        """Take one step's forward and backward pass without moving a weight; for a GPU, before the first real one.

        Returns what the device cannot do deterministically, or nothing; then torch is told to do it all the same.
        Want of memory shows here too, rather than in the midst of it.
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
        """Gradient of one microbatch; the last one of a step also moves the weights."""
        accelerator, stage = self.accelerator, self.stage
        with accelerator.accumulate(*stage.trained.values()):
            loss, instance, prior = self.loss(batch)
            accelerator.backward(loss)
            value = float(instance.detach())
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"the loss of step {step + 1} is not finite, and the step was not taken",
                    where=f"{stage.name} stage",
                    fix="Lower its learning rate, or set precision to fp32; the last checkpoint is still good.",
                )
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(stage.parameters(), self.config.optimizer.max_grad_norm)
            self.optimizer.step()
            # On a CPU fresh memory costs more than zeroing what is there; on a GPU the memory is worth more.
            self.optimizer.zero_grad(set_to_none=accelerator.device.type != "cpu")
        return value, float(prior.detach())

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of a batch, its instance images' and its class images' part; see `denoising_loss`."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            conditioning = self.stage.condition(batch.prompts)
            noised = add_noise(
                self.scheduler, batch.latents.to(device), batch.noise.to(device), batch.timesteps.to(device)
            )
            prediction = self.stage.unet(noised.latents, noised.timesteps, conditioning, return_dict=False)[0]
        weights = timestep_weights(self.scheduler, noised.timesteps, self.config.min_snr_gamma)
        return denoising_loss(prediction, noised.target, batch.instances, self.config.prior.weight, weights)
