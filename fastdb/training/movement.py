"""Check that the steps of a run change the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fastdb.errors import TrainingError

PATIENCE = 10
"""Steps with a learning rate above 0 in which a part's weights must change."""


@dataclass
class Movement:
    """Compares weights before and after steps, until every part of a stage has changed once.

    A variable of accelerate or a learning rate below the precision of float32 lets a run end "trained" with the weights
    of the base model. The comparison costs two passes over the weights in a run.

    Attributes:
        stage: name of the stage.
        parts: the weights of each part that train.
        rate: a usual learning rate, for the remedy.
    """

    stage: str
    parts: Mapping[str, Iterable[torch.Tensor]]
    rate: str = "2e-6"
    _before: dict[str, torch.Tensor] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)
    _moved: set[str] = field(default_factory=set)

    def before_step(self, rates: Mapping[str, float]) -> None:
        """Remember the weights of parts that have not changed yet and whose rate is above 0."""
        for part, rate in rates.items():
            if rate > 0 and part not in self._moved | self._before.keys():
                self._before[part] = _sums(self.parts[part])

    def after_step(self, rates: Mapping[str, float], skipped: bool, last: bool) -> None:
        """Compare the weights.

        Args:
            skipped: the gradient scaler skipped the step.
            last: it was the last step of the stage.

        Raises:
            TrainingError: the weights have not changed in `PATIENCE` steps, or until the last one.
        """
        for part in [part for part, rate in rates.items() if rate > 0 and part in self._before and not skipped]:
            self._steps[part] = self._steps.get(part, 0) + 1
            if not torch.equal(self._before[part], _sums(self.parts[part])):
                self._moved.add(part)
                del self._before[part]
            elif last or self._steps[part] >= PATIENCE:
                again = "--from-step 0" if self.stage == "unet" else "--restart"
                raise TrainingError(
                    f"no weight of {part} has changed in {self._steps[part]} of its steps, with a learning rate of "
                    f"{rates[part]:g}",
                    where=f"{self.stage} stage",
                    fix=f"Run the same command with a higher rate, such as {again} --set "
                    f"{part}.learning_rate={self.rate}.",
                )


def _sums(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the bits of each weight tensor as integers, int64 (tensors,)."""
    bits = {2: torch.int16, 4: torch.int32}
    return torch.stack([weight.detach().view(bits[weight.element_size()]).sum(dtype=torch.int64) for weight in weights])
