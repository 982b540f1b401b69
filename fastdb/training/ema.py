"""The exponential moving average (EMA) of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """The exponential moving average of a module's weights, in float32 on its device or in the CPU's memory.

    Step k moves it by 1 - d towards the weights, with d = min(decay, k / (k + 9)) and d = 0 in the first step, so that
    early weights fade soon. Formula and rounding are those of diffusers' `EMAModel`, which cannot average weights of a
    GPU in the CPU's memory, and whose module takes Colab fourteen seconds to import.

    Args:
        on_cpu: keep the average in the CPU's memory. Each operation rounds once, on every device alike, so the result
            is the same to the bit.
    """

    def __init__(self, module: torch.nn.Module, decay: float, on_cpu: bool = False) -> None:
        self._module, self._decay, self._steps = module, decay, 0
        self._average = [
            weights.detach().to("cpu" if on_cpu else weights.device, copy=True) for weights in module.parameters()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        self._steps += 1
        step = self._steps - 1
        decay = min(self._decay, (1 + step) / (10 + step)) if step else 0.0
        for average, weights in zip(self._average, self._module.parameters(), strict=True):
            # One tensor at a time: with the average on the CPU, no second copy of all weights is needed there.
            difference = average - weights.to(average.device)
            average.sub_(difference.mul_(1 - decay))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the average as its weights in this context, then its own weights, exact to the bit."""
        own = [weights.detach().to("cpu", copy=True) for weights in self._module.parameters()]
        try:
            self._fill(self._average)
            yield
        finally:
            self._fill(own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the module's state with the average as its weights, by the module's own names."""
        names = [name for name, _ in self._module.named_parameters()]
        return {**self._module.state_dict(), **dict(zip(names, self._average, strict=True))}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Restore the `state_dict` of `steps` steps."""
        self._steps = steps
        for (name, _), average in zip(self._module.named_parameters(), self._average, strict=True):
            average.copy_(state[name])

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for weights, value in zip(self._module.parameters(), values, strict=True):
            weights.copy_(value)
