"""How large the networks of a Stable Diffusion 2.x are, told from the shapes of its tensors in an original file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from fastdb.errors import ModelError
from fastdb.models.layouts import vae
from fastdb.models.layouts.families import SD2_UNET
from fastdb.models.layouts.tensor_mapping import BROKEN, Shape
from fastdb.models.layouts.unet import ROOT

HEAD = 64
"""Channels of an attention head in every SD 2.x, which no shape tells; narrow models of tests have less."""
GROUPS = 32
"""Groups of a group norm in every Stable Diffusion, which no shape tells; narrow models of tests may have less."""


@dataclass(frozen=True, kw_only=True)
class UNetSizes:
    """Of a UNet: channels of a latent, in and out, of the first level, and of each level; width of the text states."""

    takes: int
    gives: int
    widths: tuple[int, ...]
    context: int

    @property
    def head(self) -> int:
        """Channels of an attention head."""
        return gcd(HEAD, *self.widths)

    def config(self) -> dict[str, Any]:
        """The configuration of diffusers' UNet2DConditionModel for a Stable Diffusion 2.x of these sizes."""
        cross = ("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in SD2_UNET.depths)
        back = ("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(SD2_UNET.depths))
        return {
            "in_channels": self.takes,
            "out_channels": self.gives,
            "down_block_types": list(cross),
            "up_block_types": list(back),
            "block_out_channels": list(self.widths),
            "layers_per_block": SD2_UNET.layers,
            "cross_attention_dim": self.context,
            # By this name diffusers means the number of heads, one a level.
            "attention_head_dim": [width // self.head for width in self.widths],
            "norm_num_groups": gcd(GROUPS, *self.widths),
            "use_linear_projection": SD2_UNET.linear,
        }


@dataclass(frozen=True, kw_only=True)
class VAESizes:
    """Of an autoencoder: channels of a picture, of a latent, and of each level."""

    picture: int
    latent: int
    widths: tuple[int, ...]


def unet_sizes(shapes: Mapping[str, Shape]) -> UNetSizes:
    """The sizes of a UNet of Stable Diffusion 2.x; `shapes` by the keys of an original file.

    Raises:
        ModelError: a tensor that tells them is not there, or has not as many dimensions as it must.
    """
    levels = range(len(SD2_UNET.multiples))
    first = [level * (SD2_UNET.layers + 1) + 1 for level in levels]
    return UNetSizes(
        takes=_side(shapes, f"{ROOT}.input_blocks.0.0.weight", 1),
        gives=_side(shapes, f"{ROOT}.out.2.weight", 0),
        widths=tuple(_side(shapes, f"{ROOT}.input_blocks.{block}.0.in_layers.2.weight", 0) for block in first),
        context=_side(shapes, f"{ROOT}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1),
    )


def vae_sizes(shapes: Mapping[str, Shape]) -> VAESizes:
    """The sizes of an autoencoder; `shapes` by the keys of an original file.

    Raises:
        ModelError: see `unet_sizes`.
    """
    down = f"{vae.ROOT}.encoder.down"
    return VAESizes(
        picture=_side(shapes, f"{vae.ROOT}.encoder.conv_in.weight", 1),
        latent=_side(shapes, f"{vae.ROOT}.decoder.conv_in.weight", 1),
        widths=tuple(_side(shapes, f"{down}.{level}.block.0.conv1.weight", 0) for level in range(len(vae.MULTIPLES))),
    )


def _side(shapes: Mapping[str, Shape], key: str, place: int) -> int:
    shape = shapes.get(key, ())
    if len(shape) <= place or not shape[place]:
        raise ModelError("is not there, or has no such shape, and tells the model's size", where=key, fix=BROKEN)
    return shape[place]
