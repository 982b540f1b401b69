"""Training loop of all parts, resumable at any step and shared by several processes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Workers:
    """The processes that train together and their device.

    Attributes:
        rank, size: each process takes every `size`-th sample of a batch, starting at `rank`.
        device: of torch. Random numbers are drawn on the CPU so that they are the same on every device.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Return this process's share of a batch.

        Raises:
            ValueError: shares would differ in size, and the mean of their losses from that of the batch.
        """
        if len(batch) % self.size:
            raise ValueError(f"{self.size} processes cannot share {len(batch)} samples evenly")
        return batch[self.rank :: self.size]

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device."""
        return tensor.to(self.device)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def make_once(self, file: Path, make: Callable[[Path], None]) -> Path:
        """Make a missing file in the first process while the others wait, and return it.

        Args:
            make: writes a temporary file, which is then renamed, so that the file is always complete.
        """
        if self.rank == 0 and not file.exists():
            new = file.with_name(f"new-{file.name}")
            make(new)
            os.replace(new, file)
        self.barrier()
        return file

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.size == 1:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad))
            at += grad.numel()


@dataclass(frozen=True)
class Plan:
    """Settings of the training of a part.

    Attributes:
        name: of the files that training writes.
        rate: highest learning rate, reached after `warmup` steps. Over the last `decay_share` of the steps it falls
            linearly towards 0 and stops at 3 %.
        knots: replace `decay_share` by a piecewise linear schedule through (step, fraction of `rate`) pairs.
        ema: decay of the moving average of the weights, which is the result.
        betas, weight_decay: of AdamW; the decay applies to matrices and convolutions only.
    """

    name: str
    steps: int
    rate: float
    ema: float
    warmup: int = 100
    decay_share: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    save_every: int = 200
    log_every: int = 50
    knots: tuple[tuple[int, float], ...] = ()

    def rate_at(self, step: int) -> float:
        """Return the learning rate of the update after `step` updates."""
        rising = min(1.0, (step + 1) / self.warmup)
        if self.knots:
            steps, shares = zip(*self.knots, strict=True)
            return self.rate * rising * float(np.interp(step, steps, shares))
        left = (self.steps - step) / (self.decay_share * self.steps)
        return self.rate * rising * max(0.03, min(1.0, left))


def generator(*address: object) -> torch.Generator:
    """Return a generator that depends only on its address, so that resuming at a step is exact."""
    digest = hashlib.blake2b("/".join(str(part) for part in address).encode(), digest_size=6).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def train(
    plan: Plan,
    work: Path,
    modules: dict[str, nn.Module],
    loss: Callable[[int], torch.Tensor],
    workers: Workers,
    check: Callable[[dict[str, nn.Module]], str] | None = None,
) -> None:
    """Train `modules` in place for `plan.steps` steps and leave the moving averages of their weights in them.

    During training they are on the device of the workers, afterwards on the CPU.

    Args:
        work: folder of `<name>.pt` (the state to resume from) and `<name>.log` (a JSON object per line with the mean
            loss of the first process since the previous line, its CPU seconds and the learning rate).
        loss: returns the mean loss of a step over this process's share of its batch.
        check: called now and then with the moving averages in `modules`; its result is logged.
    """
    state, log = work / f"{plan.name}.pt", work / f"{plan.name}.log"
    for module in modules.values():
        module.to(workers.device)
    run = _Run(plan, modules)
    if state.exists():
        run.load(state)
    losses: list[float] = []
    while run.step < plan.steps:
        began = time.process_time()
        rate = plan.rate_at(run.step)
        value = loss(run.step)
        value.backward()
        run.update(rate, workers)
        losses.append(float(value.detach()))
        run.seconds += time.process_time() - began
        if workers.rank:
            continue
        last = run.step == plan.steps
        if last or run.step % plan.log_every == 0:
            mean = sum(losses) / len(losses)
            _log(log, {"step": run.step, "loss": round(mean, 5), "cpu_s": round(run.seconds), "rate": rate})
            losses.clear()
        if last or run.step % plan.save_every == 0:
            run.save(state)
        if check is not None and (last or run.step % (5 * plan.save_every) == 0):
            with run.averages_in_place():
                _log(log, {"step": run.step, "check": check(modules)})
    run.finish()
    for module in modules.values():
        module.to("cpu")


class _Run:
    """State of a training run, its weights, their moving averages and the optimizer."""

    def __init__(self, plan: Plan, modules: dict[str, nn.Module]) -> None:
        named = {
            f"{key}.{name}": parameter
            for key, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        # Weight decay would shrink the embeddings of words that are in no caption to zero.
        exempt = {name for name, tensor in named.items() if tensor.ndim < 2 or "norm" in name or "embedding" in name}
        groups = [
            {"params": [named[name] for name in named if name not in exempt], "weight_decay": plan.weight_decay},
            {"params": [named[name] for name in named if name in exempt], "weight_decay": 0.0},
        ]
        self.parameters = list(named.values())
        self.means = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=plan.betas, fused=True)
        self.ema, self.step, self.seconds = plan.ema, 0, 0.0

    def update(self, rate: float, workers: Workers) -> None:
        """Apply the gradients, clipped to a total norm of 1, and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        workers.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        # Early averages span few steps, like tf.train.ExponentialMovingAverage with `num_updates`.
        share = 1.0 - min(self.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.means, [parameter.detach() for parameter in self.parameters], share)
        self.step += 1

    def load(self, file: Path) -> None:
        """Load a saved state."""
        state = torch.load(file, weights_only=True, map_location="cpu")
        _fill(self.parameters, state["weights"])
        _fill(self.means, state["means"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, file: Path) -> None:
        """Save the state atomically."""
        state: dict[str, Any] = {"step": self.step, "seconds": self.seconds}
        state |= {"weights": [parameter.detach() for parameter in self.parameters], "means": self.means}
        state |= {"optimizer": self.optimizer.state_dict()}
        torch.save(state, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    @contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """Replace the weights by the moving averages temporarily."""
        weights = [parameter.detach().clone() for parameter in self.parameters]
        self.finish()
        yield
        _fill(self.parameters, weights)

    def finish(self) -> None:
        """Replace the weights by the moving averages."""
        _fill(self.parameters, self.means)


@torch.no_grad()
def _fill(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _log(file: Path, line: dict[str, object]) -> None:
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(file.stem, json.dumps(line), flush=True)
