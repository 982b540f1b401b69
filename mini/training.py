"""The loop all parts are trained by: resumable at any step, alone or in processes that share each batch."""

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
class Crew:
    """The processes that train together, and where.

    Attributes:
        rank, size: each process takes every `size`-th sample of a batch from `rank` on.
        device: what torch calls it. All lots are drawn on the CPU, so that they are the same everywhere.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch.

        Raises:
            ValueError: parts would differ in size, and the mean of their losses would not be that of the batch.
        """
        if len(batch) % self.size:
            raise ValueError(f"{self.size} processes cannot share {len(batch)} samples evenly")
        return batch[self.rank :: self.size]

    def here(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device."""
        return tensor.to(self.device)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def once(self, file: Path, make: Callable[[Path], None]) -> Path:
        """A file that the first process makes where it is missing, while the others wait.

        Args:
            make: writes a file of another name beside it, which then gets its name: half a file is never found.
        """
        if self.rank == 0 and not file.exists():
            new = file.with_name(f"new-{file.name}")
            make(new)
            os.replace(new, file)
        self.wait()
        return file

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.size == 1:
            return
        grads = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad))
            at += grad.numel()


@dataclass(frozen=True)
class Plan:
    """How one part is trained.

    Attributes:
        name: of the files that training keeps.
        rate: highest learning rate, reached after `warm` steps; over the last `fall` of all steps, a part of 1, it
            falls linearly towards 0 and stops at 3 %.
        bends: instead of `fall`, (step, share of `rate`) pairs that straight lines join.
        ema: decay of the running mean of the weights, which is the result.
        betas, decay: AdamW's, the decay for matrices and convolutions alone.
    """

    name: str
    steps: int
    rate: float
    ema: float
    warm: int = 100
    fall: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.01
    save_every: int = 200
    log_every: int = 50
    bends: tuple[tuple[int, float], ...] = ()

    def rate_at(self, step: int) -> float:
        """The learning rate of the update that follows `step` done ones."""
        rising = min(1.0, (step + 1) / self.warm)
        if self.bends:
            steps, shares = zip(*self.bends, strict=True)
            return self.rate * rising * float(np.interp(step, steps, shares))
        left = (self.steps - step) / (self.fall * self.steps)
        return self.rate * rising * max(0.03, min(1.0, left))


def generator(*address: object) -> torch.Generator:
    """A generator that depends on its address alone: a step is a function of its number, so resuming is exact."""
    digest = hashlib.blake2b("/".join(str(part) for part in address).encode(), digest_size=6).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def train(
    plan: Plan,
    work: Path,
    modules: dict[str, nn.Module],
    loss: Callable[[int], torch.Tensor],
    crew: Crew,
    check: Callable[[dict[str, nn.Module]], str] | None = None,
) -> None:
    """Train `modules` in place for `plan.steps` steps and leave the running means of their weights in them.

    They are on the crew's device meanwhile, and on the CPU again afterwards.

    Args:
        work: keeps `<name>.pt` (state to go on from) and `<name>.log` (one JSON object a line: loss of the first
            process since the line before, CPU seconds of that process, rate).
        loss: of a step, the mean over this process's share of its batch.
        check: told now and then, with the running means in `modules`; its line goes to the log.
    """
    state, log = work / f"{plan.name}.pt", work / f"{plan.name}.log"
    for module in modules.values():
        module.to(crew.device)
    run = _Run(plan, modules)
    if state.exists():
        run.load(state)
    losses: list[float] = []
    while run.step < plan.steps:
        began = time.process_time()
        rate = plan.rate_at(run.step)
        value = loss(run.step)
        value.backward()
        run.update(rate, crew)
        losses.append(float(value.detach()))
        run.seconds += time.process_time() - began
        if crew.rank:
            continue
        over = run.step == plan.steps
        if over or run.step % plan.log_every == 0:
            mean = sum(losses) / len(losses)
            _note(log, {"step": run.step, "loss": round(mean, 5), "cpu_s": round(run.seconds), "rate": rate})
            losses.clear()
        if over or run.step % plan.save_every == 0:
            run.save(state)
        if check is not None and (over or run.step % (5 * plan.save_every) == 0):
            with run.means_in_place():
                _note(log, {"step": run.step, "check": check(modules)})
    run.finish()
    for module in modules.values():
        module.to("cpu")


class _Run:
    """What changes from step to step: the weights, their running means, the optimizer."""

    def __init__(self, plan: Plan, modules: dict[str, nn.Module]) -> None:
        named = [(f"{key}.{name}", one) for key, part in modules.items() for name, one in part.named_parameters()]
        named = [(name, one) for name, one in named if one.requires_grad]
        # Decay would bring the embeddings of words that no caption has to nothing.
        bare = {name for name, one in named if one.ndim < 2 or "norm" in name or "embedding" in name}
        groups = [
            {"params": [one for name, one in named if name not in bare], "weight_decay": plan.decay},
            {"params": [one for name, one in named if name in bare], "weight_decay": 0.0},
        ]
        self.parameters = [one for _, one in named]
        self.means = [one.detach().clone() for one in self.parameters]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=plan.betas, fused=True)
        self.ema, self.step, self.seconds = plan.ema, 0, 0.0

    def update(self, rate: float, crew: Crew) -> None:
        """One step along the gradients, which are cut to norm 1 together and then cleared."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        crew.agree(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        # At first the mean reaches back over few steps, as tf.train.ExponentialMovingAverage does with `num_updates`.
        share = 1.0 - min(self.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.means, [one.detach() for one in self.parameters], share)
        self.step += 1

    def load(self, file: Path) -> None:
        """Go on from a state that was saved."""
        state = torch.load(file, weights_only=True, map_location="cpu")
        _fill(self.parameters, state["weights"])
        _fill(self.means, state["means"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, file: Path) -> None:
        """Write all of it beside the file, then in its place."""
        state: dict[str, Any] = {"step": self.step, "seconds": self.seconds}
        state |= {"weights": [one.detach() for one in self.parameters], "means": self.means}
        state |= {"optimizer": self.optimizer.state_dict()}
        torch.save(state, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    @contextmanager
    def means_in_place(self) -> Iterator[None]:
        """The running means in place of the weights, for a while."""
        kept = [one.detach().clone() for one in self.parameters]
        self.finish()
        yield
        _fill(self.parameters, kept)

    def finish(self) -> None:
        """Leave the running means in the modules."""
        _fill(self.parameters, self.means)


@torch.no_grad()
def _fill(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for one, value in zip(parameters, values, strict=True):
        one.copy_(value)


def _note(file: Path, line: dict[str, object]) -> None:
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(file.stem, json.dumps(line), flush=True)
