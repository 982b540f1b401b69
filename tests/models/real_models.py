"""Models of every family as diffusers and transformers build them: in their real size without memory, or narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import original_names

LEVELS = {
    "sd1": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_embed_type": "text_time",
        "use_linear_projection": True,
    },
}
LEVELS["sd1-inpainting"] = LEVELS["sd1"] | {"in_channels": 9}
LEVELS["sd2"] = LEVELS["sd1"] | {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


def build(family: str, size: str = "full") -> dict[str, Any]:
    """The parts of a model by their names in a diffusers folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    sizes = original_names.SIZES[size]
    width, code = sizes["width"], sizes["vae"]
    levels = LEVELS[family] | {"norm_num_groups": min(32, width // 2), "cross_attention_dim": sizes["context"][family]}
    if family == "sdxl":
        levels |= {"projection_class_embeddings_input_dim": sizes["added"]}
        levels |= {"addition_time_embed_dim": (sizes["added"] - sizes["openclip"]["sdxl"]["width"]) // 6}
    if size == "narrow":
        levels |= {"attention_head_dim": 2, "sample_size": 8}
    parts = {
        "unet": UNet2DConditionModel(
            block_out_channels=[multiple * width for multiple in ((1, 2, 4) if family == "sdxl" else (1, 2, 4, 4))],
            **levels,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(code, 2 * code, 4 * code, 4 * code),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=min(32, code // 2),
        ),
    }
    if family == "sd2":
        parts["text_encoder"] = CLIPTextModel(text_config(sizes, "sd2", layers=23))
    else:
        parts["text_encoder"] = CLIPTextModel(text_config(sizes, "clip", layers=12))
    if family == "sdxl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(sizes, "sdxl", layers=32))
    return parts


def text_config(sizes: dict[str, Any], kind: str, layers: int) -> Any:
    from transformers import CLIPTextConfig

    measures = sizes["clip"] if kind == "clip" else sizes["openclip"][kind]
    return CLIPTextConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=measures["width"],
        intermediate_size=measures["feed"],
        projection_dim=measures["width"],
        num_hidden_layers=layers,
        num_attention_heads=measures["width"] // 64 or 4,
        hidden_act="quick_gelu" if kind == "clip" else "gelu",
        bos_token_id=sizes["vocabulary"] - 2,
        eos_token_id=sizes["vocabulary"] - 1,
        pad_token_id=sizes["vocabulary"] - 1,
    )


PIPELINES = {"sd1-inpainting": "StableDiffusionInpaintPipeline", "sdxl": "StableDiffusionXLPipeline"}


def pipeline(family: str) -> Any:
    """The class of diffusers for a family."""
    import diffusers

    return getattr(diffusers, PIPELINES.get(family, "StableDiffusionPipeline"))


def save(family: str, mini: Path, folder: Path) -> Path:
    """A narrow model of a family in the diffusers layout, all of its weights random."""
    import diffusers
    import torch

    from fastdb.models.loading import load_tokenizer

    torch.manual_seed(0)
    parts = build(family, "narrow")
    for part in parts.values():
        for weight in part.parameters():
            torch.nn.init.normal_(weight, 0.0, 0.1)
    more: dict[str, Any] = {"tokenizer": load_tokenizer(mini)}
    if family == "sdxl":
        more["tokenizer_2"] = more["tokenizer"]
    else:
        more |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline(family)(**parts, **more, scheduler=scheduler).save_pretrained(folder)
    return folder
