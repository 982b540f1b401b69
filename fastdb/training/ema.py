"""The exponential moving average (EMA) of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fastdb.training.methods import Full, Method

_FULL = Full()


class Average:
    """The exponential moving average of a module's trained weights, in float32 on its device or in the CPU's memory.

    Step k moves it by 1 - d towards the weights, with d = min(decay, k / (k + 9)) and d = 0 in the first step, so that
    early weights fade soon. Formula and rounding are those of diffusers' `EMAModel`, which cannot average weights of a
    GPU in the CPU's memory, and whose module takes Colab fourteen seconds to import.

    Args:
        on_cpu: keep the average in the CPU's memory. Each operation rounds once, on every device alike, so the result
            is the same to the bit.
        method: decides which weights train.
    """

    def __init__(self, module: torch.nn.Module, decay: float, on_cpu: bool = False, method: Method = _FULL) -> None:
        self._module, self._decay, self._steps, self._method = module, decay, 0, method
        self._average = [
            weights.detach().to("cpu" if on_cpu else weights.device, copy=True) for weights in self._weights()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        self._steps += 1
        step = self._steps - 1
        decay = min(self._decay, (1 + step) / (10 + step)) if step else 0.0
        for average, weights in zip(self._average, self._weights(), strict=True):
            # One tensor at a time: with the average on the CPU, no second copy of all weights is needed there.
            difference = average - weights.to(average.device)
            average.sub_(difference.mul_(1 - decay))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the average as its weights in this context, then its own weights, exact to the bit."""
        own = [weights.detach().to("cpu", copy=True) for weights in self._weights()]
        try:
            self._fill(self._average)
            yield
        finally:
            self._fill(own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of a checkpoint with the average as the weights."""
        names = self._method.weights(self._module)
        return {**self._method.state(self._module), **dict(zip(names, self._average, strict=True))}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Restore the `state_dict` of `steps` steps."""
        self._steps = steps
        for name, average in zip(self._method.weights(self._module), self._average, strict=True):
            average.copy_(state[name])

    def _weights(self) -> list[torch.nn.Parameter]:
        return list(self._method.weights(self._module).values())

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for weights, value in zip(self._weights(), values, strict=True):
            weights.copy_(value)
