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
    weights = "diffusion_pytorch_model.safetensors"
    save_tensors(new / "unet" / weights, half(unet.state_dict()))
    save_tensors(new / "vae" / weights, half(vae.state_dict()))
    # transformers 5 omits the prefix in memory, but files have it.
    state = encoder.state_dict()
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    save_tensors(new / "text_encoder" / "model.safetensors", half(named))
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def pack_judge(file: Path, judge: Any) -> None:
    """Write the judge's weights to `file`."""
    write_bytes(file, save(half(judge.state_dict())))


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in half precision, sorted by name, without position ids, which files lack."""
    return {name: tensor.half().contiguous() for name, tensor in sorted(tensors.items()) if "position_ids" not in name}
