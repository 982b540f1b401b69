"""Extraction of a LoRA from a full fine-tuning, by a singular value decomposition of each layer's difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastdb.formats.reader import TensorFile
from fastdb.models.layouts.layout import modern_name
from fastdb.models.lora.adapter import Pair
from fastdb.models.lora.targets import target_layers
from fastdb.reporting import Progress


@dataclass(frozen=True)
class ExtractedLayer:
    """A layer's difference to the base model, approximated by two factors.

    Attributes:
        norm: L2 norm of the difference.
        error: L2 norm of what the factors lack, relative to `norm`.
    """

    part: str
    layer: str
    pair: Pair
    norm: float
    error: float


def extract(
    part: str,
    base: TensorFile,
    trained: TensorFile,
    *,
    rank: int | None,
    error: float | None,
    progress: Progress | None = None,
) -> Iterator[ExtractedLayer]:
    """Yield each layer of sd-scripts' targets, convolutions included, that differs from the base model.

    There is no threshold below which a difference is dropped: a text encoder moves by less than a hundredth.

    Args:
        rank: of every layer; a layer may have no more than its smaller side.
        error: the smallest rank whose error is at most this, in place of `rank`.
    """
    names = {modern_name(part, name): name for name in base.tensors}
    layers = target_layers(part, {name: info.shape for name, info in base.tensors.items()}, "kohya-conv")
    stored = {modern_name(part, name): name for name in trained.tensors}
    for number, layer in enumerate(layers, start=1):
        weight = trained.read(stored[f"{layer}.weight"]).float()
        difference = weight - base.read(names[f"{layer}.weight"]).float().reshape(weight.shape)
        if difference.any():
            yield _factored(part, layer, difference, rank, error)
        base.forget()
        trained.forget()
        if progress is not None:
            progress(number, len(layers))


def outside(part: str, base: TensorFile, trained: TensorFile) -> float:
    """Return the L2 norm of the differences of all tensors that no LoRA contains, such as norms and biases."""
    names = {modern_name(part, name): name for name in base.tensors}
    layers = target_layers(part, {name: info.shape for name, info in base.tensors.items()}, "kohya-conv")
    square = 0.0
    for name in trained.tensors:
        modern = modern_name(part, name)
        if modern.removesuffix(".weight") not in layers and modern in names and not modern.endswith("position_ids"):
            square += float((trained.read(name).float() - base.read(names[modern]).float()).square().sum())
    return square**0.5


def _factored(part: str, layer: str, difference: torch.Tensor, rank: int | None, error: float | None) -> ExtractedLayer:
    flat = difference.flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    # What remains after each rank, from the smallest values up, so that small numbers are not lost beside large ones.
    rest = values.double().square().flip(0).cumsum(0).flip(0).sqrt()
    norm = float(rest[0])
    if error is not None:
        enough = (rest <= error * norm).nonzero()
        rank = int(enough[0]) if len(enough) else len(values)
    kept = max(1, min(rank or 1, len(values)))
    root = values[:kept].sqrt()
    down = (right[:kept] * root[:, None]).reshape(kept, *difference.shape[1:]).contiguous()
    up = (left[:, :kept] * root).reshape(difference.shape[0], kept, *[1] * (difference.dim() - 2)).contiguous()
    missing = float(rest[kept]) if kept < len(rest) else 0.0
    return ExtractedLayer(part, layer, Pair(down, up, float(kept)), norm, missing / norm)
