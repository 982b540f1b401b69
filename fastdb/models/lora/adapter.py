"""Adapters as the difference that they make to weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.models.layouts.layout import modern_name
from fastdb.models.lora.targets import ALPHA, DOWN, UP

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pair:
    """The factors of a layer's difference, up times down times alpha over rank, in any type.

    Shapes are those of `targets.factor_shapes`.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank."""
        return int(self.down.shape[0])

    def delta(self) -> torch.Tensor:
        """Return the difference, float32, in the shape of the layer's weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * (self.alpha / self.rank)).view(self.up.shape[0], *self.down.shape[1:])


Adapter = Mapping[str, Pair]
"""The pair of each adapted layer by its name in diffusers."""


def is_adapter(names: Iterable[str]) -> bool:
    """Return whether tensors of a checkpoint, by their names, are those of an adapter and not of a whole part."""
    return any(name.endswith(f".{DOWN}") for name in names)


def read_adapter(file: TensorFile | Path) -> dict[str, Pair]:
    """Read the adapter of a checkpoint's file.

    Raises:
        ModelError: it cannot be read.
    """
    opened = open_tensors(file) if isinstance(file, Path) else file
    layers = [name.removesuffix(f".{DOWN}") for name in opened.tensors if name.endswith(f".{DOWN}")]

    def read(layer: str) -> Pair:
        down, up, alpha = (opened.read(f"{layer}.{name}") for name in (DOWN, UP, ALPHA))
        return Pair(down, up, float(alpha))

    return {layer: read(layer) for layer in sorted(layers)}


@dataclass(frozen=True)
class MergedFile(TensorFile):
    """The weights of a part in diffusers naming, into which adapters are merged when they are read."""

    part: str = ""
    adapters: Sequence[Adapter] = ()

    @classmethod
    def of(cls, file: TensorFile, part: str, adapters: Sequence[Adapter]) -> MergedFile:
        """Merge adapters into an opened file."""
        own = {each.name: getattr(file, each.name) for each in fields(TensorFile)}
        return cls(**own, part=part, adapters=adapters)

    def read(self, name: str) -> torch.Tensor:
        """Return a weight, float32 if an adapter changes it."""
        return merged(modern_name(self.part, name), super().read(name), self.adapters)


def merged(name: str, weight: torch.Tensor, adapters: Iterable[Adapter]) -> torch.Tensor:
    """Return a weight with the differences of adapters, in float32; unchanged if none adapts it.

    Args:
        name: of the weight in diffusers, such as `mid_block.attentions.0.proj_in.weight`.
    """
    layer = name.removesuffix(".weight")
    for pair in (adapter[layer] for adapter in adapters if layer in adapter):
        weight = weight.float() + pair.delta().view(weight.shape)
    return weight
