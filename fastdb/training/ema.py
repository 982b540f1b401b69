"""The running average of what trains (EMA): steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel


class Average:
    """The exponential moving average of a module's weights, in float32 on its device.

    Step k moves it by 1 - d towards the weights, with d = min(decay, k / (k + 9)) and d = 0 in the first step:
    it forgets early weights soon and has them all in view later. The formula is that of diffusers' `EMAModel`.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self._module = module
        self._average = EMAModel(module.parameters(), decay=decay)

    def update(self) -> None:
        """Take in the weights as a step has left them."""
        self._average.step(self._module.parameters())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within this the module has the average for its weights; then it has its own again, bit for bit."""
        self._average.store(self._module.parameters())
        try:
            self._average.copy_to(self._module.parameters())
            yield
        finally:
            self._average.restore(self._module.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The module's state with the average for its weights, by the module's own names."""
        names = [name for name, _ in self._module.named_parameters()]
        return {**self._module.state_dict(), **dict(zip(names, self._average.shadow_params, strict=True))}

    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Put back what `state_dict` gave after `steps` steps."""
        self._average.optimization_step = steps
        for (name, _), average in zip(self._module.named_parameters(), self._average.shadow_params, strict=True):
            average.copy_(state[name])
