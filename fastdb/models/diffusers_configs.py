"""Configurations of a diffusers folder for a model in one file.

A file in the original layout contains weights and no settings; all models of a family have the same. The vocabulary of
CLIP is made from its merges if they are on this machine, else downloaded (1.5 MB).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdb.downloads.fetch import fetch
from fastdb.downloads.small_models import CLIP_MERGES, clip_vocabulary, find
from fastdb.downloads.source import HubFile
from fastdb.errors import ModelError
from fastdb.models.diffusers_folder import read_config
from fastdb.models.export import Planned
from fastdb.models.family import SD1, SD1_INPAINTING, SD2, SDXL, Family, TextEncoder
from fastdb.models.layouts.layout import modern_name
from fastdb.storage.atomic_write import make_folder, write_bytes, write_json

Config = dict[str, Any]

MINI = Path(__file__).parent / "mini"
"""The small model that ships in the package."""

VOCABULARY = ("vocab.json", "merges.txt")
VOCABULARIES = (
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("openai/clip-vit-large-patch14", ""),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
)
"""Repositories with the vocabulary that all CLIP text encoders share, and its folder in them."""

UNETS: Mapping[str, Config] = {
    SD1.name: {"attention_head_dim": 8, "sample_size": 64},
    SD1_INPAINTING.name: {"attention_head_dim": 8, "sample_size": 64, "in_channels": 9},
    SD2.name: {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    SDXL.name: {
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""Settings that only the UNet of a family has."""

HEADS = 64
"""Width of an attention head in every text encoder."""


def configs(family: Family, *, v_prediction: bool = False) -> dict[str, Config]:
    """Return the JSON files of a full-size model's folder, by their paths in it.

    Args:
        family: a family with a UNet.
        v_prediction: the UNet predicts v; such a SD 2 is for 768 px, others for 512.
    """
    encoders = dict(zip(("text_encoder", "text_encoder_2"), family.text_encoders, strict=False))
    tokenizers = {name.replace("text_encoder", "tokenizer"): encoder for name, encoder in encoders.items()}
    xl = family is SDXL
    files = {
        "model_index.json": _index(family, [*encoders], [*tokenizers]),
        "unet/config.json": _unet(family, v_prediction),
        "vae/config.json": _vae(family, 1024 if xl else 768 if v_prediction and family is SD2 else 512),
        "scheduler/scheduler_config.json": _scheduler(family, v_prediction),
    }
    for name, encoder in encoders.items():
        files[f"{name}/config.json"] = _text_encoder(encoder, second=name.endswith("_2"))
    return files | {f"{name}/tokenizer_config.json": _tokenizer(encoder) for name, encoder in tokenizers.items()}


def lay_out(
    folder: Path,
    family: Family,
    parts: Mapping[str, Sequence[Planned]],
    like: Path | None = None,
    *,
    v_prediction: bool = False,
) -> None:
    """Write the configurations and vocabularies of a model's diffusers folder.

    Args:
        folder: the folder to make.
        parts: the planned tensors of each part, which the configurations must fit.
        like: a diffusers folder to copy from. None takes the configurations of the family and downloads the
            vocabularies, or copies those of mini for a model as small.
        v_prediction: the UNet predicts v.

    Raises:
        ModelError: `like` is for another model, the model has unusual sizes, or vocabularies are unavailable.
        StorageError: the folder cannot be written.
    """
    if like is not None:
        if misfit := _misfit({part: read_config(like / part / "config.json") for part in parts}, parts):
            raise ModelError(misfit, where=like, fix="Give a folder of the same kind of model.")
        return _copy(like, folder)
    full_size = configs(family)
    misfit = _misfit({part: full_size[f"{part}/config.json"] for part in parts}, parts)
    if not misfit:
        return _write(folder, family, v_prediction)
    if family is SD1 and not _misfit({part: read_config(MINI / part / "config.json") for part in parts}, parts):
        return _copy(MINI, folder)
    raise ModelError(
        f"cannot be written: the configurations of {family.title} are for other sizes; {misfit}",
        subject=folder,
        fix="Give a diffusers folder of the same shape with --like.",
    )


def _misfit(configs: Mapping[str, Config], parts: Mapping[str, Sequence[Planned]]) -> str:
    """Return the first setting that contradicts the tensors, as a clause; empty if there is none."""
    for part, plan in parts.items():
        shapes = {modern_name(part, planned.entry.name): planned.entry.shape for planned in plan}
        for name, side, key in _WIDTHS[part]:
            setting, actual = configs[part].get(key), shapes[name][side]
            expected = setting[0] if isinstance(setting, list) else setting
            if expected is not None and expected != actual:
                return f"its {part} has {key} {expected}, and the file {actual}"
    return ""


_TEXT = "text_model.embeddings.token_embedding.weight"
_WIDTHS = {
    "unet": (
        ("conv_in.weight", 0, "block_out_channels"),
        ("conv_in.weight", 1, "in_channels"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, "cross_attention_dim"),
    ),
    "vae": (("encoder.conv_in.weight", 0, "block_out_channels"),),
    "text_encoder": ((_TEXT, 0, "vocab_size"), (_TEXT, 1, "hidden_size")),
    "text_encoder_2": ((_TEXT, 0, "vocab_size"), (_TEXT, 1, "hidden_size")),
}
"""Tensors of each part, the side that a setting determines, and that setting."""


def _copy(like: Path, folder: Path) -> None:
    make_folder(folder)
    for pattern in ("*.json", "*.txt"):
        for file in [*like.glob(pattern), *like.glob(f"*/{pattern}")]:
            if not file.name.endswith(".index.json") and not file.name.startswith("."):
                place = folder / file.relative_to(like)
                make_folder(place.parent)
                shutil.copyfile(file, place)


def _write(folder: Path, family: Family, v_prediction: bool) -> None:
    words = {name: _vocabulary(name) for name in VOCABULARY}
    for name, config in configs(family, v_prediction=v_prediction).items():
        place = folder / name
        make_folder(place.parent)
        write_json(place, config)
        if place.name == "tokenizer_config.json":
            for vocabulary, data in words.items():
                write_bytes(place.with_name(vocabulary), data)


def _vocabulary(name: str) -> bytes:
    merges = find(CLIP_MERGES)
    if merges is not None:
        return clip_vocabulary(merges)[name]
    first, *mirrors = (HubFile(repository, f"{inside}{name}") for repository, inside in VOCABULARIES)
    data = fetch(first, mirrors=mirrors).read_bytes()
    if name.endswith(".json"):
        try:
            whole = isinstance(json.loads(data), dict)
        except ValueError:
            whole = False
        if not whole:
            raise ModelError("is no vocabulary", subject=first, fix="Delete it from the cache, and try again.")
    return data


def _index(family: Family, encoders: list[str], tokenizers: list[str]) -> Config:
    pipelines = {SDXL: "StableDiffusionXLPipeline", SD1_INPAINTING: "StableDiffusionInpaintPipeline"}
    nothing = [None, None]
    index: Config = {"_class_name": pipelines.get(family, "StableDiffusionPipeline")}
    if family is SDXL:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"requires_safety_checker": False, "safety_checker": nothing}
    index |= {"feature_extractor": nothing, "image_encoder": nothing}
    for encoder in encoders:
        projected = "WithProjection" if encoder.endswith("_2") else ""
        index[encoder] = ["transformers", f"CLIPTextModel{projected}"]
    index |= {tokenizer: ["transformers", "CLIPTokenizer"] for tokenizer in tokenizers}
    return index | {
        "scheduler": ["diffusers", SCHEDULERS[family.name]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _unet(family: Family, v_prediction: bool) -> Config:
    attention, plain = "CrossAttn{}Block2D", "{}Block2D"
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": family.cross_attention_dim,
        "down_block_types": [attention.format("Down")] * 3 + [plain.format("Down")],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 96 if v_prediction and family is SD2 else 64,
        "up_block_types": [plain.format("Up")] + [attention.format("Up")] * 3,
        **UNETS[family.name],
    }
    if v_prediction and family is SD2:
        config["upcast_attention"] = True
    return config


def _vae(family: Family, side: int) -> Config:
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": family.vae.channels,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": side,
        "scaling_factor": family.vae.scale,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return config if family.vae.half else config | {"force_upcast": True}


SCHEDULERS = {
    SD1.name: "PNDMScheduler",
    SD1_INPAINTING.name: "PNDMScheduler",
    SD2.name: "DDIMScheduler",
    SDXL.name: "EulerDiscreteScheduler",
}


def _scheduler(family: Family, v_prediction: bool) -> Config:
    name = SCHEDULERS[family.name]
    config: Config = {
        "_class_name": name,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if v_prediction else "epsilon",
        "steps_offset": 1,
        "trained_betas": None,
    }
    if name == "EulerDiscreteScheduler":
        return config | {"interpolation_type": "linear", "timestep_spacing": "leading", "use_karras_sigmas": False}
    config |= {"clip_sample": False, "set_alpha_to_one": False}
    return config | {"skip_prk_steps": True} if name == "PNDMScheduler" else config


def _text_encoder(encoder: TextEncoder, *, second: bool) -> Config:
    return {
        "architectures": ["CLIPTextModelWithProjection" if second else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu" if encoder.width == 768 else "gelu",
        "hidden_size": encoder.width,
        "intermediate_size": 4 * encoder.width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": encoder.width // HEADS,
        "num_hidden_layers": encoder.layers,
        "pad_token_id": 1,
        "projection_dim": encoder.width if encoder.width != 1024 else 512,
        "torch_dtype": "float32",
        "vocab_size": 49408,
    }


def _tokenizer(encoder: TextEncoder) -> Config:
    return {
        "add_prefix_space": False,
        "bos_token": "<|startoftext|>",
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": encoder.padding,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }
