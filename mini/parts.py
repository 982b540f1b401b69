"""The parts of mini, empty: SD 1.5's topology with narrow layers, and the weights training begins with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 64
"""Of the text encoder, and so of the UNet's cross attention."""

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
"""As in SD 1.5 but for widths, groups and the number of heads (which is what diffusers' `attention_head_dim` means
here). The first three widths differ, since a level as wide as the one before it has no shortcut convolution and would
lack two of SD 1.5's tensors."""

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
    """Configuration of a CLIP text encoder: SD 1.5's 12 layers and 77 tokens, `WIDTH` wide.

    Args:
        words: in the vocabulary.
        begin, end: the tokens around a prompt; `end` fills up as well.
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
        # Without it transformers 5 keeps the half precision of the file, in a pipeline that is single otherwise.
        "torch_dtype": "float32",
        "vocab_size": words,
    }


def new_vae(seed: int) -> AutoencoderKL:
    """An autoencoder that leans to the identity: a chain of its shortcut, down and up convolutions.

    With diffusers' own initial weights training rests on a plateau for a long time.
    """
    vae = AutoencoderKL.from_config(VAE)
    redraw(vae, f"{seed}/vae")
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight")):
                weight.mul_(0.15)
            elif name.endswith("conv_shortcut.weight") or ("upsamplers" in name and name.endswith("weight")):
                _lean(weight)
            elif "downsamplers" in name and name.endswith("weight"):
                _lean(weight)
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
    """A UNet whose residual branches and output begin at zero."""
    unet = UNet2DConditionModel.from_config(UNET)
    redraw(unet, f"{seed}/unet")
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
                weight.zero_()
    return unet


def new_text_encoder(config: dict[str, Any], seed: int) -> CLIPTextModel:
    """A text encoder whose words are far apart from the start."""
    encoder = CLIPTextModel(CLIPTextConfig(**config))
    redraw(encoder, f"{seed}/text_encoder")
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                weight.mul_(0.3)
    return encoder


def redraw(model: nn.Module, seed: str) -> None:
    """Draw a model's weights anew, each tensor from its own generator, so that nothing depends on global state.

    Norms 1, biases 0, token embeddings with deviation 0.3, position embeddings 0.1, the rest 1 / sqrt(3 x inputs).
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


def _lean(weight: torch.Tensor) -> None:
    """Make a convolution nearly the identity over the channels both sides have."""
    middle = weight.shape[-1] // 2
    weight.mul_(0.3)
    for channel in range(min(weight.shape[:2])):
        weight[channel, channel, middle, middle] += 1.0


def _generator(seed: str) -> torch.Generator:
    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
