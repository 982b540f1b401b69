"""Base models as folders in diffusers layout, read from their JSON files without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.errors import ModelError
from fastdb.storage.atomic_write import explained
from fastdb.storage.manifest import sha256

PARTS = ("unet", "vae", "text_encoder")
"""Parts with weights; a model also has a tokenizer and a scheduler."""

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Stem of the weight file of each part, SDXL's second text encoder among them."""

CONFIGS = {
    "unet": ("config.json", "_class_name", "UNet2DConditionModel"),
    "vae": ("config.json", "_class_name", "AutoencoderKL"),
    "text_encoder": ("config.json", "architectures", "CLIPTextModel"),
    "scheduler": ("scheduler_config.json", "_class_name", None),
}
"""Part -> configuration file, key that names the class, the supported class (None: any)."""

DOWN_BLOCKS = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]

ANOTHER = "Choose a Stable Diffusion 1.x model in diffusers layout, for example stable-diffusion-v1-5."
DOWNLOAD = "Download the model again; a download may have been cut short."


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A Stable Diffusion 1.x folder and the numbers of its configurations."""

    folder: Path
    prediction_type: str
    """`epsilon` or `v_prediction`."""
    latent_scale: float
    """Latents are multiplied by this after encoding and divided by it before decoding."""
    latent_channels: int
    vae_factor: int
    """Pixels per latent along one side."""
    sample_size: int
    """Side in pixels of the pictures that the model was trained on."""
    cross_attention_dim: int
    """Width of the text states, [batch, tokens, this]."""
    tokens: int
    """Length of a padded prompt."""
    vocabulary: int
    """Entries of the text encoder's embedding table."""


def open_base_model(folder: Path) -> BaseModel:
    """Read the JSON files of a base model and check that its parts are complete and consistent.

    Raises:
        ModelError: no folder in diffusers layout, another kind of model, a missing part, weights only as pickle, or a
            tokenizer or text encoder of another model.
    """
    _check_kind(folder)
    configs = {part: _config(folder, part) for part in CONFIGS}
    for part in PARTS:
        weight_file(folder, part)
    unet, vae, text, scheduler = (configs[part] for part in ("unet", "vae", "text_encoder", "scheduler"))
    _check_topology(folder / "unet", unet)
    try:
        model = BaseModel(
            folder=folder,
            prediction_type=str(scheduler.get("prediction_type", "epsilon")),
            latent_scale=float(vae.get("scaling_factor", 0.18215)),
            latent_channels=int(vae.get("latent_channels", 4)),
            vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
            sample_size=int(unet.get("sample_size", 64)) * 2 ** (len(vae["block_out_channels"]) - 1),
            cross_attention_dim=int(unet["cross_attention_dim"]),
            tokens=int(text.get("max_position_embeddings", 77)),
            vocabulary=int(text.get("vocab_size", 49408)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"cannot be used: a configuration has a missing or wrong value ({error!r})", subject=folder, fix=DOWNLOAD
        ) from error
    if model.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"cannot be used: training does not support the prediction type {model.prediction_type!r}",
            subject=folder / "scheduler",
            fix=ANOTHER,
        )
    if text.get("hidden_size", 768) != model.cross_attention_dim:
        what = f"the text encoder is {text.get('hidden_size', 768)} wide, the UNet expects {model.cross_attention_dim}"
        raise ModelError(what, where=folder, fix="Restore the text encoder that belongs to this UNet.")
    _check_tokenizer(folder / "tokenizer", model.vocabulary)
    return model


def weight_file(folder: Path, part: str) -> Path:
    """Return the safetensors file of a part, preferably in full precision, else the fp16 variant.

    Raises:
        ModelError: there is none.
    """
    stem = WEIGHTS[part]
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / part / name).is_file():
            return folder / part / name
    pickles = sorted(file.name for file in (folder / part).glob("*.bin"))
    if pickles:
        raise ModelError(
            f"the weights exist only as pickle ({pickles[0]}), which may run code and is not read",
            where=folder / part,
            fix="Download the .safetensors files of this model, or save it again with safe_serialization=True.",
        )
    raise ModelError(f"has no {stem}.safetensors; {_contents(folder / part)}", subject=folder / part, fix=DOWNLOAD)


def fingerprint(folder: Path, hash_file: Callable[[Path], str] = sha256) -> str:
    """Return the SHA-256, in hex, over the names and SHA-256 hashes of the three weight files.

    Args:
        hash_file: returns the SHA-256 of a file.

    Raises:
        ModelError: a weight file is missing.
        StorageError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for part in PARTS:
        file = weight_file(folder, part)
        with explained(file):
            digest = hash_file(file)
        whole.update(f"{part}/{file.name} {digest}\n".encode())
    return whole.hexdigest()


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: the file is missing or contains no JSON object.
        StorageError: the disk fails.
    """
    try:
        with explained(file):
            value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("is missing", subject=file, fix=DOWNLOAD) from error
    except ValueError as error:
        raise ModelError(f"contains invalid JSON ({error})", subject=file, fix=DOWNLOAD) from error
    if not isinstance(value, dict):
        raise ModelError("contains no JSON object", subject=file, fix=DOWNLOAD)
    return value


def _check_kind(folder: Path) -> None:
    if folder.is_file():
        what = "is a single file; a base model is a folder in diffusers layout"
        raise ModelError(what, subject=folder, fix="Give the folder that contains model_index.json.")
    if not folder.is_dir():
        raise ModelError(
            "there is no such folder", where=folder, fix="Check the path, or download the base model first."
        )
    if not (folder / "model_index.json").is_file():
        what = f"has no model_index.json; {_contents(folder)}"
        raise ModelError(what, subject=folder, fix="Give the folder that contains model_index.json.")
    pipeline = read_config(folder / "model_index.json").get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise ModelError(f"is a {pipeline}, not a StableDiffusionPipeline", subject=folder, fix=ANOTHER)
    for part in (*CONFIGS, "tokenizer"):
        if not (folder / part).is_dir():
            raise ModelError(f"the {part} is missing; {_contents(folder)}", where=folder, fix=DOWNLOAD)


def _config(folder: Path, part: str) -> dict[str, Any]:
    name, key, supported = CONFIGS[part]
    config = read_config(folder / part / name)
    if supported is not None and config.get(key) not in (supported, [supported]):
        raise ModelError(f"is a {config.get(key)}, not a {supported}", subject=folder / part, fix=ANOTHER)
    return config


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it contains {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"


def _check_topology(where: Path, unet: Mapping[str, Any]) -> None:
    """Check that the UNet has the tensors of SD 1.x; SD 2 has linear projections, inpainting 9 channels."""
    blocks = unet.get("down_block_types", DOWN_BLOCKS)
    faults = {
        "its UNet has the linear projections of Stable Diffusion 2": unet.get("use_linear_projection", False),
        f"its UNet has {unet.get('in_channels')} input channels, not 4": unet.get("in_channels", 4) != 4,
        "its UNet does not have the blocks of Stable Diffusion 1.x": blocks != DOWN_BLOCKS,
        "its UNet does not have the layers per block of Stable Diffusion 1.x": unet.get("layers_per_block", 2) != 2,
    }
    for fault, present in faults.items():
        if present:
            raise ModelError(fault, where=where, fix=ANOTHER)


def _check_tokenizer(folder: Path, vocabulary: int) -> None:
    """Check that the embedding table has all tokens; transformers would index it out of bounds."""
    numbers: list[int] = []
    if (folder / "vocab.json").is_file():
        numbers += [int(number) for number in read_config(folder / "vocab.json").values()]
    if (folder / "tokenizer.json").is_file():
        whole = read_config(folder / "tokenizer.json")
        numbers += [int(number) for number in whole.get("model", {}).get("vocab", {}).values()]
        numbers += [int(token["id"]) for token in whole.get("added_tokens", [])]
    if (folder / "added_tokens.json").is_file():
        numbers += [int(number) for number in read_config(folder / "added_tokens.json").values()]
    if not numbers:
        what = f"has neither vocab.json nor tokenizer.json; {_contents(folder)}"
        raise ModelError(what, subject=folder, fix=DOWNLOAD)
    if max(numbers) >= vocabulary:
        raise ModelError(
            f"the tokenizer has token {max(numbers)}, the text encoder has only {vocabulary} entries",
            where=folder,
            fix="Restore the tokenizer that belongs to this text encoder.",
        )
