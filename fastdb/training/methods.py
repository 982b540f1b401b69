"""Training methods, which decide what of a part trains, how it is saved, and how many bytes it takes.

torch is not imported here: the check of disk space before a training counts tensors without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdb.checkpoints.progress import STAGES
from fastdb.config import Config, LoRAConfig
from fastdb.models.lora.targets import factor_shapes, target_layers

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a part by its name in diffusers."""


class Method(ABC):
    """A way to train a part, such as the UNet or the text encoder.

    Attributes:
        rate: a usual learning rate, as a command names it.
        compressed: size of weights in a compressed checkpoint as a part of their raw size, estimated from above.
    """

    rate: str
    compressed: float

    @abstractmethod
    def dtype(self, half: torch.dtype) -> torch.dtype:
        """Return the type of the part's own weights; `half` is that of frozen parts."""

    @abstractmethod
    def load(self, folder: Path, part: str, half: torch.dtype, weights: Path | None) -> Any:
        """Load a part of a base model, on the CPU, ready to train.

        Args:
            weights: a checkpoint's file of the part, from which it resumes.

        Raises:
            ModelError: the base model or the weights cannot be loaded.
        """

    @abstractmethod
    def attach(self, module: Any, part: str) -> None:
        """Make a loaded part, or one without data, ready to train as the untrained base model."""

    @abstractmethod
    def weights(self, module: Any) -> dict[str, torch.nn.Parameter]:
        """Return the weights of a part that train, float32, by their names in a checkpoint."""

    @abstractmethod
    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint contains for a part."""

    @abstractmethod
    def counts(self, part: str, shapes: Shapes) -> tuple[int, ...]:
        """Return how many numbers each trained tensor of a part has, given the shapes of its own weights."""

    @abstractmethod
    def exported(self, shapes: Mapping[str, Shapes]) -> tuple[int, ...]:
        """Return how many numbers each tensor of an exported file has, given the shapes of every part."""


class Full(Method):
    """Full fine-tuning, in which every weight of a part trains."""

    rate = "2e-6"
    # The largest that was measured (benchmarks/RESULTS.md, "Compressed checkpoints": 0.57 for SD 1.5's UNet).
    compressed = 0.72

    def dtype(self, half: torch.dtype) -> torch.dtype:
        """Return float32."""
        import torch

        return torch.float32

    def load(self, folder: Path, part: str, half: torch.dtype, weights: Path | None) -> Any:
        """Load a part with the weights of a checkpoint in the place of its own."""
        # Loads torch.
        from fastdb.models.loading import load_part

        module = load_part(folder, part, self.dtype(half), weights=weights)
        self.attach(module, part)
        return module

    def attach(self, module: Any, part: str) -> None:
        """Let every weight train."""
        module.requires_grad_(True)

    def weights(self, module: Any) -> dict[str, torch.nn.Parameter]:
        """Return every weight."""
        return dict(module.named_parameters())

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return the whole state."""
        state: dict[str, torch.Tensor] = module.state_dict()
        return state

    def counts(self, part: str, shapes: Shapes) -> tuple[int, ...]:
        """Return the sizes of the part's own weights."""
        return tuple(prod(shape) for name, shape in shapes.items() if not name.endswith("position_ids"))

    def exported(self, shapes: Mapping[str, Shapes]) -> tuple[int, ...]:
        """Return the sizes of all weights of the model."""
        return tuple(count for part, of_part in shapes.items() for count in self.counts(part, of_part))


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adapters in float32 beside frozen weights, which are in half precision where the device has it.

    Attributes:
        seed: of the session, which addresses the initial values.
    """

    config: LoRAConfig
    seed: int
    rate = "1e-4"
    compressed = 0.97

    def dtype(self, half: torch.dtype) -> torch.dtype:
        """Return that of frozen parts."""
        return half

    def load(self, folder: Path, part: str, half: torch.dtype, weights: Path | None) -> Any:
        """Load a part with adapters, those of a checkpoint or new ones."""
        # Both load torch.
        from fastdb.models.loading import load_part
        from fastdb.models.lora import layers
        from fastdb.training.batches import generator

        module = load_part(folder, part, half)
        self.attach(module, part)
        if weights is None:
            layers.initialise(module, self.config.init, lambda layer: generator(self.seed, "lora", part, layer))
        else:
            layers.restore(module, weights)
        return module

    def attach(self, module: Any, part: str) -> None:
        """Freeze the part's own weights and add adapters that change nothing."""
        from fastdb.models.lora import layers

        config = self.config
        layers.attach(
            module, part, rank=config.rank, scale=config.scale, targets=config.targets, dropout=config.dropout
        )

    def weights(self, module: Any) -> dict[str, torch.nn.Parameter]:
        """Return the weights of the adapters."""
        from fastdb.models.lora import layers

        return layers.adapter_weights(module)

    def state(self, module: Any) -> dict[str, torch.Tensor]:
        """Return the weights of the adapters and the alpha of each layer."""
        from fastdb.models.lora import layers

        return layers.adapter_state(module, self.config.scale * self.config.rank)

    def counts(self, part: str, shapes: Shapes) -> tuple[int, ...]:
        """Return the sizes of both factors of each adapted layer."""
        layers = target_layers(part, shapes, self.config.targets).values()
        return tuple(prod(factor) for shape in layers for factor in factor_shapes(shape, self.config.rank))

    def exported(self, shapes: Mapping[str, Shapes]) -> tuple[int, ...]:
        """Return the sizes of the adapters."""
        return tuple(count for part in STAGES for count in self.counts(part, shapes[part]))


def method_of(config: Config) -> Method:
    """Return the method that settings name."""
    return LoRA(config.lora, config.seed) if config.method == "lora" else Full()
