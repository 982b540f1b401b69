"""Merging of LoRAs into the weights of whole models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.export import Exported, Planned, plan_from_file, plan_from_parts, write_model
from fastdb.models.inspect import inspect, model_layout, prediction_of
from fastdb.models.layouts.layout import Layout
from fastdb.models.lora.adapter import merged
from fastdb.models.lora.reading import LoRAFile
from fastdb.reporting import Progress


def merge(
    base: Path, target: Path, loras: Sequence[LoRAFile], *, dtype: torch.dtype, progress: Progress | None = None
) -> Exported:
    """Write a base model with the differences of LoRAs added to its weights, in float32 and once.

    Args:
        base: a file in the original layout, or a diffusers folder, of Stable Diffusion 1.x.
        target: ends in `.safetensors` or `.ckpt`.
        dtype: of every weight.

    Raises:
        ModelError: base or LoRA cannot be used, or they do not belong together.
        StorageError: the target cannot be written.
    """
    inspection = inspect(base)
    layout = model_layout(inspection)
    check_fit(loras, prediction_of(inspection).kind, base, layout)
    if base.is_dir():
        plan = plan_from_parts(layout, {part: open_tensors(weight_file(base, part)) for part in layout.parts}, dtype)
    else:
        plan = plan_from_file(layout, open_tensors(base), dtype)
    header = {name: value for name, value in inspection.metadata.items() if name != "format"}
    header["fastdb.merged"] = ", ".join(lora.path.name for lora in loras)
    return write_model([_changed(planned, layout, loras) for planned in plan], target, header, progress)


def check_fit(loras: Sequence[LoRAFile], prediction: str, base: str | Path, layout: Layout | None = None) -> None:
    """Raise if a LoRA was trained for another prediction type or family than the base model.

    Raises:
        ModelError: naming both.
    """
    if layout is not None and layout.family != "sd1":
        raise ModelError(
            f"{loras[0].path.name} is a LoRA for Stable Diffusion 1.x, and the base model is a {layout.title}",
            where=base,
            fix="Choose a base model of Stable Diffusion 1.x.",
        )
    for lora in loras:
        if lora.prediction and lora.prediction != prediction:
            raise ModelError(
                f"{lora.path.name} was trained for a base model that predicts {lora.prediction}, and this one predicts "
                f"{prediction}",
                where=base,
                fix="Choose the base model that the LoRA was trained on.",
            )


def delta_of(name: str, part: str, weight: torch.Tensor, loras: Sequence[LoRAFile]) -> torch.Tensor:
    """Return a weight with the differences of LoRAs, float32 if one changes it.

    Args:
        name: in diffusers.

    Raises:
        ModelError: a LoRA was trained on a layer of another size.
    """
    layer = name.removesuffix(".weight")
    for lora in loras:
        pair = lora.adapters.get(part, {}).get(layer)
        if pair is not None and (pair.up.shape[0], pair.down[0].numel()) != (weight.shape[0], weight[0].numel()):
            raise ModelError(
                f"its layer {layer} is for {pair.down[0].numel()} inputs and {pair.up.shape[0]} outputs, and the base "
                f"model has {weight[0].numel()} and {weight.shape[0]}",
                where=lora.path,
                fix="Choose the base model that the LoRA was trained on.",
            )
    return merged(name, weight, [lora.adapters.get(part, {}) for lora in loras])


def merge_into_module(module: torch.nn.Module, part: str, loras: Sequence[LoRAFile]) -> None:
    """Add the differences of LoRAs to the weights of a loaded part, whose type stays.

    Raises:
        ModelError: a LoRA was trained on a layer of another size.
    """
    prefix = "" if part == "unet" else "text_model."
    with torch.no_grad():
        for name, weight in module.named_parameters():
            canonical = name if name.startswith(prefix) else prefix + name
            changed = delta_of(canonical, part, weight.cpu(), loras)
            if any(canonical.removesuffix(".weight") in lora.adapters.get(part, {}) for lora in loras):
                weight.copy_(changed)


def _changed(planned: Planned, layout: Layout, loras: Sequence[LoRAFile]) -> Planned:
    line = layout.lines.get(planned.entry.name)
    if line is None or not any(line.part in lora.adapters for lora in loras):
        return planned
    return replace(planned, make=partial(_make, planned, line.names[0], line.part, loras))


def _make(planned: Planned, name: str, part: str, loras: Sequence[LoRAFile]) -> torch.Tensor:
    return delta_of(name, part, planned.make(), loras)
