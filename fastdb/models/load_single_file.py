"""One original file as live modules: each tensor read, checked, copied into its place, and forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models.convert import family_of
from fastdb.models.inspect import inspect
from fastdb.models.layouts.families import layout_of
from fastdb.models.loading import empty, give
from fastdb.models.tensor_plan import Planned, to_parts


def import_original(
    file: Path, configs: Mapping[str, Mapping[str, Any]], *, dtype: torch.dtype = torch.float32, averaged: bool = False
) -> dict[str, Any]:
    """The parts of a `.safetensors` or `.ckpt` in the original layout as modules on the CPU, in evaluation mode.

    Large tensors come first, so that what is held beside the weights when most of them are there is a small tensor:
    beyond the weights, memory stays at about what importing the libraries takes.

    Args:
        file: of a Stable Diffusion 1.x, its inpainting, 2.x or SDXL.
        configs: of each part that is wanted (`unet`, `vae`, `text_encoder`, SDXL's `text_encoder_2`) what its
            `config.json` says in a diffusers folder.
        dtype: of the weights in memory. They are copies: the file may go.
        averaged: take the running averages (EMA) of the UNet's weights.

    Raises:
        ModelError: the file is no whole model, or not of these configurations; NaN or infinity in a weight, or a number
            that `dtype` cannot hold.
        StorageError: the disk fails, or reading is forbidden.
    """
    layout = layout_of(family_of(inspect(file)))
    strange = sorted(configs.keys() - set(layout.parts))
    if strange:
        fix = f"There are: {', '.join(layout.parts)}."
        raise ModelError(f"a {layout.title} has no part {strange[0]}", where=file, fix=fix)
    parts = to_parts(layout, open_tensors(file), dtype, averaged=averaged)
    modules: dict[str, Any] = {}
    for part in sorted(configs, key=lambda part: _elements(parts[part])):
        modules[part] = empty(part, configs[part])
        give(modules[part], _tensors(parts[part]), part, dtype, file)
    return {part: modules[part] for part in configs}


def _tensors(planned: Iterable[Planned]) -> Iterator[tuple[str, torch.Tensor]]:
    for one in sorted(planned, key=lambda one: -prod(one.entry.shape)):
        yield one.entry.name, one.tensor()
        one.forget()


def _elements(planned: Iterable[Planned]) -> int:
    return sum(prod(one.entry.shape) for one in planned)
