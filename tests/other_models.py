"""Base models that are not mini: its shape with other weights, and another shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path


def originals(part: str, names: Iterable[str]) -> dict[str, str]:
    """The name in an original Stable Diffusion 1.x file of each tensor of a part, by the name as given."""
    from fastdb.models.layouts.tables import layout_of

    layout = layout_of("sd1")
    return {given: layout.by_name[part, modern].original for modern, given in layout.known(part, names).items()}


def another(mini: Path, folder: Path, seed: int = 1) -> Path:
    """A copy with weights a little off, in single precision, as most base models have them; half cannot hold them."""
    import torch
    from safetensors.torch import load_file, save_file

    from fastdb.models.diffusers_folder import PARTS, weight_file

    shutil.copytree(mini, folder)
    numbers = torch.Generator().manual_seed(seed)
    for part in PARTS:
        file = weight_file(folder, part)
        weights = {
            name: tensor.float() * (1 + 1e-3 * torch.randn(tensor.shape, generator=numbers))
            for name, tensor in load_file(file).items()
        }
        save_file(weights, file, {"format": "pt"})
    return folder


def wider(mini: Path, folder: Path) -> Path:
    """A copy with a UNet that is wider where it is deepest, and knows nothing."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from fastdb.models.diffusers_folder import weight_file

    shutil.copytree(mini, folder)
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    config["block_out_channels"][3] += 24
    file.write_text(json.dumps(config))
    weights = UNet2DConditionModel.from_config(config).state_dict()
    save_file(weights, weight_file(folder, "unet"), {"format": "pt"})
    return folder
