"""Updates of weights within the backward pass, each as soon as its gradient is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastdb.config import Config
from fastdb.errors import TrainingError
from fastdb.reporting import argument

TOGETHER = 16 << 20
"""Bytes of gradients that are applied together; a call of the optimizer for each small weight costs more than it."""


class FusedBackward:
    """Updates within the backward pass, after which gradients are freed (Lv et al. 2023, LOMO, section 3.1).

    So few gradients are in memory at a time, and they are read while they are still in the cache. Each update is that
    of the optimizer: the result equals, to the bit, that of an update of all weights without clipping afterwards.

    Args:
        optimizer: as torch or bitsandbytes made it, with its state restored.
        before_update: called before each update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, before_update: Callable[[], None]) -> None:
        self._optimizer, self._before_update = optimizer, before_update
        self._groups = {
            weight: number for number, group in enumerate(optimizer.param_groups) for weight in group["params"]
        }
        self._pending: list[torch.Tensor] = []
        self._bytes = 0
        self._norms: list[torch.Tensor] = []
        # Without a gradient nothing changes, but bitsandbytes moves restored moments of all weights to the GPU.
        optimizer.step()

    @contextmanager
    def updates(self) -> Iterator[None]:
        """Update weights in the backward pass of this context."""
        self._pending, self._norms, self._bytes = [], [], 0
        with self._hooked(self._add):
            yield
        self._update()

    @contextmanager
    def discards(self) -> Iterator[None]:
        """Free gradients without an update in the backward pass of this context."""
        with self._hooked(lambda weight: setattr(weight, "grad", None)):
            yield

    def gradient_norm(self) -> float:
        """Return the L2 norm of all gradients of the last updates."""
        return float(torch.linalg.vector_norm(torch.stack(self._norms))) if self._norms else 0.0

    @contextmanager
    def _hooked(self, hook: Callable[[torch.Tensor], None]) -> Iterator[None]:
        # In joint mode the text encoder's weights are frozen after its steps.
        trained = [weight for weight in self._groups if weight.requires_grad]
        handles = [weight.register_post_accumulate_grad_hook(hook) for weight in trained]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, weight: torch.Tensor) -> None:
        self._pending.append(weight)
        self._bytes += weight.nbytes
        if self._bytes >= TOGETHER:
            self._update()

    def _update(self) -> None:
        """Update the weights whose gradients are complete, and free these."""
        self._before_update()
        weights, self._pending, self._bytes = self._pending, [], 0
        self._norms.append(
            torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        )
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [
            {**group, "params": [weight for weight in weights if self._groups[weight] == number]}
            for number, group in enumerate(groups)
        ]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        for weight in weights:
            weight.grad = None


def check_fused_backward(config: Config, precision: str, session: str) -> None:
    """Raise if a precision needs a gradient scaler, which decides on a step by all of its gradients.

    Raises:
        TrainingError: naming settings that work.
    """
    if config.optimizer.fused_backward_pass and precision == "fp16":
        command = f"fastdb train {argument(session)}"
        raise TrainingError(
            "the gradient scaler of fp16 skips a step if any of its gradients is infinite, and with "
            "optimizer.fused_backward_pass some weights have changed by then",
            where="optimizer.fused_backward_pass",
            fix=f"Use another precision: {command} --set precision=fp32. Or update after the backward pass: {command} "
            "--set optimizer.fused_backward_pass=false",
        )
