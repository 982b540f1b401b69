"""The `.yaml` beside a file of Stable Diffusion 2.x, which AUTOMATIC1111 and others read: shapes, and what it predicts.

Those programs take `<name>.yaml` before they guess; the file itself cannot tell 512 (epsilon) from 768 (v).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdb.models.layouts.layout import Shape
from fastdb.models.layouts.sd2_sizes import unet_sizes, vae_sizes
from fastdb.models.prediction import Prediction
from fastdb.storage.atomic_write import write_text

HEAD = (
    "# What the model file of the same name is, for programs that read it with the code of latent diffusion:\n"
    "# a Stable Diffusion 2.x whose UNet predicts {what}. Made by fastdb from the tensors' shapes.\n"
)
RESOLUTIONS = [4, 2, 1]
"""Where the UNet has attention: at these fractions of the latent's side."""


def config_file(target: Path) -> Path:
    """Where the configuration of a model file lies."""
    return target.with_suffix(".yaml")


def write_config(target: Path, shapes: Mapping[str, Shape], prediction: Prediction) -> Path:
    """Write the configuration beside the model file `target`; one that is there was the replaced file's, and goes.

    Args:
        shapes: of the model's tensors, by the keys of an original file.

    Raises:
        ModelError: a tensor that tells the model's size is not there.
        StorageError: it cannot be written.
    """
    import yaml

    what = "v (velocity)" if prediction == "v_prediction" else "noise (epsilon)"
    text = yaml.safe_dump(ldm_config(shapes, prediction), sort_keys=False, default_flow_style=None)
    place = config_file(target)
    write_text(place, HEAD.format(what=what) + text)
    return place


def ldm_config(shapes: Mapping[str, Shape], prediction: Prediction) -> dict[str, Any]:
    """The configuration of a Stable Diffusion 2.x in the terms of latent diffusion's code (`ldm`).

    The terms and what no shape tells (noise schedule, scale of latents, the text encoder, of whose layers the last but
    one is read) are those of Stability's `v2-inference.yaml` and `v2-inference-v.yaml`. The text encoder is always
    OpenCLIP's ViT-H/14: its sizes have no place in such a file.

    Raises:
        ModelError: a tensor that tells the model's size is not there.
    """
    params: dict[str, Any] = {"parameterization": "v"} if prediction == "v_prediction" else {}
    params |= {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": vae_sizes(shapes).latent,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": _unet(shapes),
        "first_stage_config": _vae(shapes),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        },
    }
    return {
        "model": {
            "base_learning_rate": 1.0e-4,
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": params,
        }
    }


def _unet(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    sizes = unet_sizes(shapes)
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "use_checkpoint": True,
            "use_fp16": True,
            "image_size": 32,
            "in_channels": sizes.takes,
            "out_channels": sizes.gives,
            "model_channels": sizes.widths[0],
            "attention_resolutions": RESOLUTIONS,
            "num_res_blocks": 2,
            "channel_mult": [width // sizes.widths[0] for width in sizes.widths],
            "num_head_channels": sizes.head,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "transformer_depth": 1,
            "context_dim": sizes.context,
            "legacy": False,
        },
    }


def _vae(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    sizes = vae_sizes(shapes)
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": sizes.latent,
            "monitor": "val/rec_loss",
            "ddconfig": {
                "double_z": True,
                "z_channels": sizes.latent,
                "resolution": 256,
                "in_channels": sizes.picture,
                "out_ch": sizes.picture,
                "ch": sizes.widths[0],
                "ch_mult": [width // sizes.widths[0] for width in sizes.widths],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    }
