"""A small seeded Stable Diffusion 1.x in the real topology: the same key names as SD 1.5, a few million weights.

It makes the code real without a download: every part loads with diffusers and transformers, photos survive
the round trip through its autoencoder as blurred photos, and the UNet learns. It knows no pictures.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fastdb.models import standin_tokenizer, standin_vae
from fastdb.storage.durable import make_folder, write_bytes, write_json

WIDTH = 64
"""Width of the text encoder, and so of the UNet's cross attention."""

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [32, 48, 64, 64],
    "center_input_sample": False,
    "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 16,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
"""As in SD 1.5 but for widths, groups and the number of heads. The widths of the first three levels differ, since
a level as wide as the one before it has no shortcut convolution and would lack two of SD 1.5's tensors."""

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": list(standin_vae.CHANNELS),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": standin_vae.GROUPS,
    "out_channels": 3,
    "sample_size": 128,
    "scaling_factor": standin_vae.SCALING_FACTOR,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

FAINT = ("conv_out.weight", "proj_out.weight", "conv2.weight", "out_proj.weight", "fc2.weight")
"""Layers that end a residual branch or the network: small, so that it starts near the identity, yet not zero, so
that gradients reach every layer at the first step."""


def build_standin(folder: Path, seed: int = 0) -> Path:
    """Write a stand-in model in diffusers layout to `folder` and return it; the same seed gives the same bytes.

    Args:
        folder: made if it is missing; files of the same names are replaced.
        seed: of the random weights.

    Raises:
        StorageError: the folder cannot be written.
    """
    vocabulary, merges = standin_tokenizer.learn()
    text = text_config(vocabulary)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        make_folder(folder / part)
    standin_tokenizer.write(folder / "tokenizer", vocabulary, merges)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)

    unet = random_weights(_shapes_of_unet(), f"{seed}/unet")
    _write_part(folder / "unet", "config.json", UNET, "diffusion_pytorch_model.safetensors", unet)
    vae = standin_vae.make_identity(random_weights(_shapes_of_vae(), f"{seed}/vae"))
    _write_part(folder / "vae", "config.json", VAE, "diffusion_pytorch_model.safetensors", vae)
    encoder = random_weights(_shapes_of_text_encoder(text), f"{seed}/text_encoder")
    _write_part(folder / "text_encoder", "config.json", text, "model.safetensors", encoder)
    write_json(folder / "model_index.json", INDEX)
    return folder


def text_config(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Configuration of a CLIP text encoder: SD 1.5's 12 layers and 77 tokens, `WIDTH` wide, for this vocabulary."""
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary[standin_tokenizer.BEGIN],
        "eos_token_id": vocabulary[standin_tokenizer.END],
        "hidden_act": "quick_gelu",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "pad_token_id": vocabulary[standin_tokenizer.END],
        "projection_dim": WIDTH,
        "vocab_size": len(vocabulary),
    }


def random_weights(shapes: dict[str, torch.Size], seed: str) -> dict[str, torch.Tensor]:
    """Fill named shapes: norms 1, biases 0, weights normal with deviation 1 / sqrt(3 x inputs), `FAINT` ones a tenth.

    Each tensor has its own generator, seeded by `seed` and its name, so neither order nor company matters.
    """
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name:
            tensors[name] = torch.ones(shape)
        else:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
            tensors[name] = torch.randn(shape, generator=generator) * _deviation(name, shape)
    return tensors


def _deviation(name: str, shape: torch.Size) -> float:
    if "token_embedding" in name:
        return 0.3
    if "position_embedding" in name:
        return 0.1
    deviation = (3.0 * shape[1:].numel()) ** -0.5
    return deviation * 0.1 if name.endswith(FAINT) else deviation


def _shapes_of_unet() -> dict[str, torch.Size]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return _shapes(UNet2DConditionModel.from_config(UNET))


def _shapes_of_vae() -> dict[str, torch.Size]:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return _shapes(AutoencoderKL.from_config(VAE))


def _shapes_of_text_encoder(config: dict[str, Any]) -> dict[str, torch.Size]:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        shapes = _shapes(CLIPTextModel(CLIPTextConfig(**config)))
    # transformers 5 leaves the prefix out for a model made from a configuration; files everywhere have it.
    return {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in shapes.items()}


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in sorted(model.state_dict().items())}


def _write_part(
    folder: Path, config_name: str, config: dict[str, Any], weights_name: str, tensors: dict[str, torch.Tensor]
) -> None:
    write_json(folder / config_name, config)
    write_bytes(folder / weights_name, save(tensors, metadata={"format": "pt"}))
