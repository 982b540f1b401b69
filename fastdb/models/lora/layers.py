"""Adapters inside a module, added to the outputs of its layers while it trains.

An adapter is two weights and a hook on a layer of the module, whose own names stay. The hook computes the low-rank
branch, so that no layer's whole difference exists in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models.layouts.layout import CLIP_PREFIX
from fastdb.models.lora.targets import ALPHA, DOWN, UP, factor_shapes, target_layers


@dataclass(frozen=True)
class _Branch:
    """The hook that adds a layer's adapter to its output."""

    scale: float
    dropout: float

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Return the output with the adapter's effect."""
        values = functional.dropout(inputs[0], self.dropout, layer.training) if self.dropout else inputs[0]
        if isinstance(layer, torch.nn.Conv2d):
            low = functional.conv2d(values, layer.lora_down, None, layer.stride, layer.padding, layer.dilation)
            return output + self.scale * functional.conv2d(low, layer.lora_up)
        return output + self.scale * functional.linear(functional.linear(values, layer.lora_down), layer.lora_up)


def attach(module: Any, part: str, *, rank: int, scale: float, targets: str, dropout: float) -> None:
    """Freeze a module's weights and give its target layers adapters of zeros, float32, which train."""
    module.requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    own = {_canonical(name): name for name in shapes}
    for layer, shape in target_layers(part, shapes, targets).items():
        adapted = module.get_submodule(own[f"{layer}.weight"].removesuffix(".weight"))
        for name, factor in zip((DOWN, UP), factor_shapes(shape, rank), strict=True):
            values = torch.zeros(factor, dtype=torch.float32, device=adapted.weight.device)
            adapted.register_parameter(name, torch.nn.Parameter(values))
        adapted.register_forward_hook(_Branch(scale, dropout))


def adapter_weights(module: Any) -> dict[str, torch.nn.Parameter]:
    """Return the weights of a module's adapters by their names in a checkpoint, sorted."""
    named = {_canonical(name): weight for name, weight in module.named_parameters()}
    return {name: named[name] for name in sorted(named) if name.endswith((f".{DOWN}", f".{UP}"))}


def initialise(module: Any, init: str, generator: Callable[[str], torch.Generator]) -> None:
    """Draw the down factors; the up factors stay zero, so that the module begins as the base model.

    Args:
        init: "kaiming", uniform with a standard deviation of 1/sqrt(3 fan_in), as peft and sd-scripts; or "gaussian",
            normal with a standard deviation of 1/rank, as diffusers' scripts.
        generator: returns the random numbers of a layer.
    """
    for name, weight in adapter_weights(module).items():
        if not name.endswith(f".{DOWN}"):
            continue
        numbers = generator(name.removesuffix(f".{DOWN}"))
        if init == "gaussian":
            values = torch.randn(weight.shape, generator=numbers) / weight.shape[0]
        else:
            bound = 1 / math.sqrt(weight[0].numel())
            values = (2 * torch.rand(weight.shape, generator=numbers) - 1) * bound
        with torch.no_grad():
            weight.copy_(values)


def adapter_state(module: Any, alpha: float) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's adapters as a checkpoint contains them, with `alpha` for each layer."""
    state: dict[str, torch.Tensor] = dict(adapter_weights(module))
    layers = [name.removesuffix(f".{DOWN}") for name in state if name.endswith(f".{DOWN}")]
    return {**state, **{f"{layer}.{ALPHA}": torch.tensor(alpha, dtype=torch.float32) for layer in layers}}


def restore(module: Any, file: Path) -> None:
    """Load a checkpoint's factors into a module's adapters.

    Raises:
        ModelError: the file has other layers or shapes.
    """
    opened, weights = open_tensors(file), adapter_weights(module)
    stored = {name: info.shape for name, info in opened.tensors.items() if not name.endswith(f".{ALPHA}")}
    if stored != {name: tuple(weight.shape) for name, weight in weights.items()}:
        raise ModelError(
            "its adapter has other layers or another rank than the settings",
            where=file,
            fix="Restore the settings that it was trained with, or start over with --restart.",
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(opened.read(name))


def _canonical(name: str) -> str:
    """Return a name with `text_model.`, which the modules of newer versions of transformers lack."""
    return f"{CLIP_PREFIX}{name}" if name.startswith("encoder.") else name
