"""Writing of the trained model and the judge in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import parts
import torch
from safetensors.torch import save

from fastdb.formats.safetensors_file import save_tensors
from fastdb.storage.atomic_write import write_bytes, write_json


def pack(
    folder: Path, *, vae: Any, unet: Any, encoder: Any, text_config: dict[str, Any], scale: float, tokenizer: Path
) -> None:
    """Replace `folder` by a diffusers folder of the model.

    Args:
        text_config: the text encoder's configuration.
        scale: factor of latents.
        tokenizer: a folder to copy.
    """
    new = folder.with_name(f"{folder.name}.new")
    if new.exists():
        shutil.rmtree(new)
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (new / part).mkdir(parents=True)
    shutil.copytree(tokenizer, new / "tokenizer")
    write_json(new / "model_index.json", parts.INDEX)
    write_json(new / "scheduler" / "scheduler_config.json", parts.SCHEDULER)
    write_json(new / "unet" / "config.json", parts.UNET)
    write_json(new / "vae" / "config.json", parts.VAE | {"scaling_factor": round(scale, 5)})
    write_json(new / "text_encoder" / "config.json", text_config)
    states = {"unet": unet.state_dict(), "vae": vae.state_dict(), "text_encoder": encoder.state_dict()}
    _replace(folder, new, states)


def repack(folder: Path, model: Path, states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Replace `folder` by a copy of the folder `model` with the weights of `states`, by part."""
    new = folder.with_name(f"{folder.name}.new")
    if new.exists():
        shutil.rmtree(new)
    shutil.copytree(model, new)
    _replace(folder, new, states)


def _replace(folder: Path, new: Path, states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write weights into the folder `new`, then replace `folder` by it."""
    for part in ("unet", "vae"):
        save_tensors(new / part / "diffusion_pytorch_model.safetensors", half(states[part]))
    # transformers 5 omits the prefix in memory, but files have it.
    encoder = {f"text_model.{name.removeprefix('text_model.')}": one for name, one in states["text_encoder"].items()}
    save_tensors(new / "text_encoder" / "model.safetensors", half(encoder))
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def pack_judge(file: Path, judge: Any) -> None:
    """Write the judge's weights to `file`."""
    write_bytes(file, save(half(judge.state_dict())))


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in half precision, sorted by name, without position ids, which files lack."""
    return {name: tensor.half().contiguous() for name, tensor in sorted(tensors.items()) if "position_ids" not in name}
