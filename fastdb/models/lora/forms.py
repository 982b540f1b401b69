"""Files of adapters in the form of kohya's sd-scripts and AUTOMATIC1111, and in that of diffusers and peft.

Kohya's names are those of layers in diffusers with underscores and one of two prefixes. A layer's difference is up
times down times alpha over rank. The diffusers form has no alpha, so that is multiplied into the up factor. Files
contain nothing but adapters, because one unknown tensor makes some programs reject a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from fastdb.formats.safetensors_file import Entry, tensor_bytes
from fastdb.models.export import DTYPES, Exported, Planned, Precision, write_model
from fastdb.models.lora.adapter import Adapter
from fastdb.reporting import Progress

Form = Literal["kohya", "diffusers"]
Adapters = Mapping[str, Adapter]
"""The adapter of each part, "unet" or "text_encoder"."""

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def kohya_layer(part: str, layer: str) -> str:
    """Return the name of a layer in kohya's form, such as `lora_unet_mid_block_attentions_0_proj_in`."""
    return f"{PREFIXES[part]}_{layer.replace('.', '_')}"


def tensors_of(adapters: Adapters, form: Form) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file, float32."""
    for part, adapter in adapters.items():
        for layer, pair in adapter.items():
            down, up = pair.down.float(), pair.up.float()
            if form == "kohya":
                name = kohya_layer(part, layer)
                yield f"{name}.lora_down.weight", down
                yield f"{name}.lora_up.weight", up
                yield f"{name}.alpha", torch.tensor(pair.alpha)
            else:
                yield f"{part}.{layer}.lora_A.weight", down
                yield f"{part}.{layer}.lora_B.weight", up * (pair.alpha / pair.rank)


def write_lora(
    adapters: Adapters,
    target: Path,
    form: Form,
    *,
    dtype: Precision,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> Exported:
    """Write a file of adapters and verify it.

    Args:
        target: ends in `.safetensors`; replaced only by a verified file.
        metadata: written to its header; `sshs_model_hash`, the SHA-256 of the data behind it, is added.

    Raises:
        ModelError: a number is not finite or too large for the type; the file read back differs from what was written.
        StorageError: the target cannot be written.
    """
    tensors = dict(tensors_of(adapters, form))
    types = {name: torch.float32 if name.endswith(".alpha") else DTYPES[dtype] for name in tensors}
    plan, digest = [], hashlib.sha256()
    # Wider types before narrower ones keep the data aligned.
    for name in sorted(tensors, key=lambda name: (-types[name].itemsize, name)):
        entry = Entry(name, types[name], tuple(tensors[name].shape))
        plan.append(Planned(entry, "LoRA", partial(tensors.__getitem__, name)))
        digest.update(tensor_bytes(entry, tensors[name].to(types[name])))
    return write_model(plan, target, {**metadata, "sshs_model_hash": digest.hexdigest()}, progress)


def underflow(adapters: Adapters) -> float:
    """Return the relative error in fp16, in which small numbers become zero or lose digits.

    It is that of all down or all up factors of a part together, whichever is larger.
    """
    worst = 0.0
    for adapter in adapters.values():
        for factors in zip(*((pair.down, pair.up) for pair in adapter.values()), strict=True):
            whole = torch.cat([factor.float().flatten() for factor in factors])
            if norm := float(whole.norm()):
                worst = max(worst, float((whole.half().float() - whole).norm()) / norm)
    return worst


def form_metadata(adapters: Adapters, metadata: Mapping[str, str], form: Form, stem: str) -> dict[str, str]:
    """Return the header metadata of a LoRA in a form, given that of its source.

    Args:
        stem: of the file's name.
    """
    kept = {
        name: value
        for name, value in metadata.items()
        if name not in ("format", "lora_adapter_metadata") and not name.startswith("sshs_")
    }
    pairs = [pair for adapter in adapters.values() for pair in adapter.values()]
    ranks, alphas = {pair.rank for pair in pairs}, {pair.alpha for pair in pairs}
    if form == "kohya":
        own = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
            "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
            "ss_output_name": stem,
        }
        return {"ss_base_model_version": "sd_v1", "ss_v2": "False", **kept, **own}
    kept = {name: value for name, value in kept.items() if not name.startswith("ss_")}
    if len(ranks) < 2:
        return kept
    # Earlier versions of diffusers take the first layer's rank as everyone's alpha.
    settings: dict[str, object] = {}
    for part, adapter in adapters.items():
        of_layers = {layer: pair.rank for layer, pair in adapter.items()}
        most = max(of_layers.values())
        own_ranks = {layer: rank for layer, rank in of_layers.items() if rank != most}
        settings |= {f"{part}.r": most, f"{part}.lora_alpha": most, f"{part}.target_modules": list(of_layers)}
        settings |= {f"{part}.rank_pattern": own_ranks, f"{part}.alpha_pattern": own_ranks}
    return {**kept, "lora_adapter_metadata": json.dumps(settings)}
