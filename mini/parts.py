"""Untrained parts of mini, SD 1.5's topology with narrow layers."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 64
"""Width of the text encoder and of the UNet's cross attention."""

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [32, 64, 72, 72],
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
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
"""As in SD 1.5 except for widths, groups and the number of heads (the meaning of diffusers' `attention_head_dim` here).
The first three widths differ because a level of the same width as the level before has no shortcut convolution and
would lack two of SD 1.5's tensors."""

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 48, 48],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 64,
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


def text_config(words: int, begin: int, end: int) -> dict[str, Any]:
    """Return the configuration of a CLIP text encoder with SD 1.5's 12 layers and 77 tokens, `WIDTH` wide.

    Args:
        words: size of the vocabulary.
        begin, end: the tokens around a prompt; `end` is also the padding.
    """
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": begin,
        "eos_token_id": end,
        "hidden_act": "quick_gelu",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "pad_token_id": end,
        "projection_dim": WIDTH,
        # Otherwise transformers 5 keeps the half precision of the file in a float32 pipeline.
        "torch_dtype": "float32",
        "vocab_size": words,
    }


def new_vae(seed: int) -> AutoencoderKL:
    """Return an autoencoder that starts near the identity through its shortcut, down and up convolutions.

    With diffusers' initial weights training stays on a plateau for a long time.
    """
    vae = AutoencoderKL.from_config(VAE)
    initialise(vae, f"{seed}/vae")
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight")):
                weight.mul_(0.15)
            elif name.endswith("conv_shortcut.weight") or ("upsamplers" in name and name.endswith("weight")):
                _make_near_identity(weight)
            elif "downsamplers" in name and name.endswith("weight"):
                _make_near_identity(weight)
                weight.zero_()
                for channel in range(weight.shape[0]):
                    weight[channel, channel, :2, :2] = 0.25
        middle = vae.encoder.conv_in.weight
        middle.mul_(0.3)
        middle[:, :, 1, 1] += torch.randn(middle.shape[:2], generator=_generator(f"{seed}/vae/in")) * 0.6
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.weight.zero_()
            conv.weight[:, :, 0, 0] = torch.eye(conv.weight.shape[0])
        vae.quant_conv.bias[4:] = -4.0
        vae.encoder.conv_out.weight[4:].mul_(0.1)
    return vae


def new_unet(seed: int) -> UNet2DConditionModel:
    """Return a UNet whose residual branches and output start at zero."""
    unet = UNet2DConditionModel.from_config(UNET)
    initialise(unet, f"{seed}/unet")
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
                weight.zero_()
    return unet


def new_text_encoder(config: dict[str, Any], seed: int) -> CLIPTextModel:
    """Return a text encoder whose word embeddings start far apart."""
    encoder = CLIPTextModel(CLIPTextConfig(**config))
    initialise(encoder, f"{seed}/text_encoder")
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                weight.mul_(0.3)
    return encoder


def initialise(model: nn.Module, seed: str) -> None:
    """Initialise a model's weights, each tensor by its own generator, independent of global state.

    Norms are 1 and biases 0; standard deviations are 0.3 for token embeddings, 0.1 for position embeddings and
    1 / sqrt(3 x inputs) otherwise.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1:
                weight.fill_(1.0)
            else:
                inputs = weight.shape[1:].numel()
                deviation = (3.0 * inputs) ** -0.5
                if "token_embedding" in name or "position_embedding" in name:
                    deviation = 0.3 if "token" in name else 0.1
                weight.copy_(torch.randn(weight.shape, generator=_generator(f"{seed}/{name}")) * deviation)


def _make_near_identity(weight: torch.Tensor) -> None:
    """Make a convolution nearly the identity over the channels common to input and output."""
    middle = weight.shape[-1] // 2
    weight.mul_(0.3)
    for channel in range(min(weight.shape[:2])):
        weight[channel, channel, middle, middle] += 1.0


def _generator(seed: str) -> torch.Generator:
    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
