"""Loading of base model parts as modules, tensor by tensor.

diffusers and transformers are imported inside the functions: they take seconds, and only the verbs that train or
draw need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from fastdb.errors import ModelError
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.models.diffusers_folder import read_config, weight_file
from fastdb.models.export import Planned, largest_magnitude, plan_parts
from fastdb.models.inspect import inspect, model_layout
from fastdb.models.layouts.layout import modern_name
from fastdb.models.lora.adapter import Adapter, is_adapter, merged, read_adapter
from fastdb.storage.atomic_write import explained

if TYPE_CHECKING:
    from diffusers import SchedulerMixin
    from transformers import CLIPTokenizer

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def load_part(folder: Path, part: str, dtype: torch.dtype = torch.float32, *, weights: Path | None = None) -> Any:
    """Load the UNet, VAE or a text encoder of a base model, on the CPU, in evaluation mode.

    Args:
        part: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        dtype: of the weights in memory. They are copies: the file may be deleted.
        weights: safetensors file in diffusers naming that replaces the base model's own; old or new naming, text
            encoder with or without `text_model.`. An adapter of a checkpoint is merged into the base model's weights.

    Raises:
        ModelError: damaged file, missing, unexpected or misshapen tensors, NaN or infinity in a weight.
    """
    module = _empty(part, read_config(folder / part / "config.json"))
    file = weights or weight_file(folder, part)
    adapters: list[Adapter] = []
    if weights and is_adapter((opened := _opened(weights)).tensors):
        file, adapters = weight_file(folder, part), [read_adapter(opened)]

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in stored.keys():  # noqa: SIM118 - no mapping, it has no iterator
            yield name, merged(modern_name(part, name), stored.get_tensor(name), adapters)

    try:
        with explained(file), safe_open(file, framework="pt") as stored:
            _fill(module, tensors(), part, dtype, file)
    except SafetensorError as error:
        raise ModelError(f"is damaged ({error})", subject=file, fix="Download the model again.") from error
    return module


def _opened(weights: Path) -> TensorFile:
    """Open the weights of a checkpoint.

    Raises:
        ModelError: they are damaged.
    """
    try:
        return open_tensors(weights)
    except ModelError as error:
        raise ModelError(f"is damaged ({error.what})", subject=weights, fix=error.fix) from error


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer of a base model."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Load the scheduler of a base model from its configuration.

    Raises:
        ModelError: diffusers has no scheduler of that name.
    """
    from diffusers import schedulers

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_config(file)
    name = str(config.get("_class_name"))
    if not name.endswith("Scheduler") or not hasattr(schedulers, name):
        fix = "Install a newer diffusers, or name another scheduler in this file."
        raise ModelError(f"diffusers has no scheduler named {name}", where=file, fix=fix)
    return getattr(schedulers, name).from_config(config)


def load_single_file(
    file: Path, configs: Mapping[str, Mapping[str, Any]], *, dtype: torch.dtype = torch.float32, averaged: bool = False
) -> dict[str, Any]:
    """Load the parts of a `.safetensors` or `.ckpt` in the original layout, on the CPU, in evaluation mode.

    Large tensors come first, so that only a small tensor is in memory beside almost complete weights: beyond the
    weights, memory stays at about what importing the libraries takes.

    Args:
        file: of a Stable Diffusion 1.x, its inpainting, 2.x or SDXL.
        configs: the `config.json` of each part to load (`unet`, `vae`, `text_encoder`, SDXL's `text_encoder_2`), as in
            a diffusers folder.
        dtype: of the weights in memory. They are copies: the file may be deleted.
        averaged: take the running averages (EMA) of the UNet's weights.

    Raises:
        ModelError: the file is no whole model, or not of these configurations; NaN or infinity in a weight, or a number
            that `dtype` cannot hold.
        StorageError: the disk fails, or reading is forbidden.
    """
    layout = model_layout(inspect(file))
    unknown = sorted(configs.keys() - set(layout.parts))
    if unknown:
        fix = f"Choose from {', '.join(layout.parts)}."
        raise ModelError(f"a {layout.title} has no part {unknown[0]}", where=file, fix=fix)
    parts = plan_parts(layout, open_tensors(file), dtype, averaged=averaged)
    modules: dict[str, Any] = {}
    for part in sorted(configs, key=lambda part: sum(prod(planned.entry.shape) for planned in parts[part])):
        modules[part] = _empty(part, configs[part])
        _fill(modules[part], _largest_first(parts[part]), part, dtype, file)
    return {part: modules[part] for part in configs}


def _largest_first(plan: Iterable[Planned]) -> Iterator[tuple[str, torch.Tensor]]:
    for planned in sorted(plan, key=lambda planned: -prod(planned.entry.shape)):
        yield planned.entry.name, planned.tensor()
        planned.forget()


def _empty(part: str, config: Mapping[str, Any]) -> Any:
    """Build the module of a part without weights, on the meta device."""
    with torch.device("meta"):
        if part in ("unet", "vae"):
            import diffusers

            kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
            return kind.from_config(dict(config))
        if part in ("text_encoder", "text_encoder_2"):
            import transformers

            encoder_config = transformers.CLIPTextConfig(**config)
            if part == "text_encoder":
                return transformers.CLIPTextModel(encoder_config)
            return transformers.CLIPTextModelWithProjection(encoder_config)
    raise ModelError("is no part of a base model", subject=part, fix=f"Choose from {', '.join(PARTS)}.")


def _fill(module: Any, tensors: Iterable[tuple[str, torch.Tensor]], part: str, dtype: torch.dtype, file: Path) -> None:
    """Give a module on the meta device its weights, copied one by one, and set it to evaluation mode.

    Args:
        tensors: by their names in diffusers, old or new, text encoder with or without `text_model.`.
        file: where they come from, for messages.

    Raises:
        ModelError: missing, unexpected or misshapen tensors, NaN or infinity in a weight.
    """
    expected = {modern_name(part, name): (name, tensor.shape) for name, tensor in module.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors:
        modern = modern_name(part, stored)
        if modern.endswith("position_ids"):
            continue
        if modern not in expected:
            raise ModelError(f"has the unexpected tensor {stored}", subject=file, fix="Download the model again.")
        name, shape = expected[modern]
        if tensor.shape != shape:
            what = f"{stored} has the shape {list(tensor.shape)}, not {list(shape)}"
            raise ModelError(what, where=file, fix="Restore the configuration that belongs to these weights.")
        if largest_magnitude(tensor) == float("inf"):
            fix = "Choose another copy of this model, or another base model."
            raise ModelError(f"{stored} contains NaN or infinity", where=file, fix=fix)
        state[name] = tensor.to(dtype, copy=True)
    for name, _ in expected.values():
        if name not in state:
            raise ModelError(f"lacks the tensor {name}", subject=file, fix="Download the model again.")
    module.load_state_dict(state, strict=True, assign=True)
    _restore_buffers(module)
    module.eval()


def _restore_buffers(module: torch.nn.Module) -> None:
    """Fill the buffers that no file contains: the position numbers of a text encoder."""
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                fix = "Install the version of diffusers and transformers that fastdb requires."
                raise ModelError("this buffer of the library is unknown", where=name, fix=fix)
            positions = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
