"""Base model parts as live modules: built empty, filled tensor by tensor from safetensors, checked on the way.

diffusers and transformers are imported inside the functions: they take seconds, and only the verbs that train or
draw need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from fastdb.errors import ModelError
from fastdb.models.diffusers_folder import read_config, weight_file
from fastdb.models.layouts.layout import modern_name
from fastdb.storage.atomic_write import explained

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def load_unet(folder: Path, dtype: torch.dtype = torch.float32, *, weights: Path | None = None) -> UNet2DConditionModel:
    """Load the UNet of a base model, on the CPU, in evaluation mode.

    Args:
        weights: a raw safetensors file that replaces the base model's own.

    Raises:
        ModelError: see `fill`.
    """
    model: UNet2DConditionModel = empty("unet", read_config(folder / "unet" / "config.json"))
    fill(model, weights or weight_file(folder, "unet"), "unet", dtype)
    return model


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder of a base model, on the CPU, in evaluation mode.

    Raises:
        ModelError: see `fill`.
    """
    model: AutoencoderKL = empty("vae", read_config(folder / "vae" / "config.json"))
    fill(model, weight_file(folder, "vae"), "vae", dtype)
    return model


def load_text_encoder(
    folder: Path, dtype: torch.dtype = torch.float32, *, weights: Path | None = None
) -> CLIPTextModel:
    """Load the text encoder of a base model, on the CPU, in evaluation mode.

    Args:
        weights: a raw safetensors file that replaces the base model's own.

    Raises:
        ModelError: see `fill`.
    """
    model: CLIPTextModel = empty("text_encoder", read_config(folder / "text_encoder" / "config.json"))
    fill(model, weights or weight_file(folder, "text_encoder"), "text_encoder", dtype)
    return model


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a base model."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler a base model names, set up from its configuration.

    Raises:
        ModelError: diffusers has no scheduler of that name.
    """
    from diffusers import schedulers

    config = read_config(folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name"))
    if not name.endswith("Scheduler") or not hasattr(schedulers, name):
        raise ModelError(f"diffusers has no scheduler named {name}", where=folder / "scheduler")
    return getattr(schedulers, name).from_config(config)


def empty(part: str, config: Mapping[str, Any]) -> Any:
    """The module of a part without weights, on the meta device; `config` as in its `config.json`.

    Raises:
        ModelError: there is no such part.
    """
    with torch.device("meta"):
        if part in ("unet", "vae"):
            import diffusers

            kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
            return kind.from_config(dict(config))
        if part in ("text_encoder", "text_encoder_2"):
            import transformers

            wanted = transformers.CLIPTextConfig(**config)
            return (
                transformers.CLIPTextModel(wanted)
                if part == "text_encoder"
                else transformers.CLIPTextModelWithProjection(wanted)
            )
    raise ModelError("no module is known for this part", where=part, fix="There are: unet, vae, text_encoder(_2).")


def fill(model: Any, file: Path, part: str, dtype: torch.dtype) -> None:
    """Give a module built on the meta device its weights and set it to evaluation mode.

    Args:
        model: the module of `part`; its names and shapes decide what the file must hold.
        file: safetensors in diffusers naming, old or new, text encoder with or without `text_model.`.
        dtype: of the weights in memory. They are copies: the file may go.

    Raises:
        ModelError: damaged file, missing, surplus or misshapen tensors, NaN or infinity in a weight.
    """

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for stored in weights.keys():  # noqa: SIM118 - no mapping, it has no iterator
            yield stored, weights.get_tensor(stored)

    try:
        with explained(file), safe_open(file, framework="pt") as weights:
            give(model, tensors(), part, dtype, file)
    except SafetensorError as error:
        raise ModelError(f"is damaged ({error})", where=file, fix="Download the model again.") from error


def give(model: Any, tensors: Iterable[tuple[str, torch.Tensor]], part: str, dtype: torch.dtype, file: Path) -> None:
    """Give a module built on the meta device these tensors, copied one by one, and set it to evaluation mode.

    Args:
        model, part, dtype: see `fill`.
        tensors: by their names in diffusers, old or new, text encoder with or without `text_model.`.
        file: where they come from, for messages.

    Raises:
        ModelError: missing, surplus or misshapen tensors, NaN or infinity in a weight.
    """
    wanted = {modern_name(part, name): (name, tensor.shape) for name, tensor in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors:
        modern = modern_name(part, stored)
        if modern.endswith("position_ids"):
            continue
        if modern not in wanted:
            raise ModelError(f"has a tensor too many, {stored}", where=file, fix="Download the model again.")
        name, shape = wanted[modern]
        state[name] = _checked(tensor, stored, shape, file).to(dtype, copy=True)
    for name, _ in wanted.values():
        if name not in state:
            raise ModelError(f"lacks the tensor {name}", where=file, fix="Download the model again.")
    model.load_state_dict(state, strict=True, assign=True)
    _restore_buffers(model)
    model.eval()


def _checked(tensor: torch.Tensor, name: str, shape: torch.Size, file: Path) -> torch.Tensor:
    if tensor.shape != shape:
        found = f"{name} has the shape {list(tensor.shape)}, not {list(shape)}"
        raise ModelError(found, where=file, fix="Put back the configuration that belongs to these weights.")
    # One pass without a copy; NaN comes through as either end.
    least, most = (float(end) for end in torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
    if not -float("inf") < least <= most < float("inf"):
        found = f"{name} holds NaN or infinite numbers"
        raise ModelError(found, where=file, fix="The file is broken; choose another copy or another base model.")
    return tensor


def _restore_buffers(model: torch.nn.Module) -> None:
    """Buffers that no file holds are still empty; the text encoder's position numbers are the only ones we know."""
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise ModelError("this version of the library has a buffer we cannot fill", where=name)
            model.get_submodule(owner).register_buffer(
                leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone(), persistent=False
            )
