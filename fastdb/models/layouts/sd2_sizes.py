"""Network sizes of a Stable Diffusion 2.x model, derived from tensor shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from fastdb.errors import ModelError
from fastdb.models.layouts.layout import BROKEN, CONV_IN, UNET_ROOT, VAE_ROOT, Shape
from fastdb.models.layouts.tables import SD2_UNET, VAE_MULTIPLES

HEAD = 64
"""Channels of an attention head in every SD 2.x; no shape shows it, and narrow test models have fewer."""
GROUPS = 32
"""Groups of a group norm in every Stable Diffusion; no shape shows it, and narrow test models may have fewer."""


@dataclass(frozen=True, kw_only=True)
class UNetSizes:
    """Sizes of a UNet."""

    takes: int
    """Input channels."""
    gives: int
    """Output channels."""
    widths: tuple[int, ...]
    """Channels of each level."""
    context: int
    """Width of the text states."""

    @property
    def head(self) -> int:
        """Channels of an attention head."""
        return gcd(HEAD, *self.widths)

    def config(self) -> dict[str, Any]:
        """Return the configuration of diffusers' UNet2DConditionModel."""
        down = ("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in SD2_UNET.depths)
        up = ("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(SD2_UNET.depths))
        return {
            "in_channels": self.takes,
            "out_channels": self.gives,
            "down_block_types": list(down),
            "up_block_types": list(up),
            "block_out_channels": list(self.widths),
            "layers_per_block": SD2_UNET.layers,
            "cross_attention_dim": self.context,
            # Despite its name, diffusers reads this as the number of heads of each level.
            "attention_head_dim": [width // self.head for width in self.widths],
            "norm_num_groups": gcd(GROUPS, *self.widths),
            "use_linear_projection": SD2_UNET.linear,
        }


@dataclass(frozen=True, kw_only=True)
class VAESizes:
    """Sizes of an autoencoder."""

    picture: int
    """Channels of a picture."""
    latent: int
    """Channels of a latent."""
    widths: tuple[int, ...]
    """Channels of each level."""


def unet_sizes(shapes: Mapping[str, Shape]) -> UNetSizes:
    """Return a UNet's sizes, given shapes by key of an original file.

    Raises:
        ModelError: a required tensor is missing or has too few dimensions.
    """
    levels = range(len(SD2_UNET.multiples))
    first = [level * (SD2_UNET.layers + 1) + 1 for level in levels]
    return UNetSizes(
        takes=_side(shapes, CONV_IN, 1),
        gives=_side(shapes, f"{UNET_ROOT}.out.2.weight", 0),
        widths=tuple(_side(shapes, f"{UNET_ROOT}.input_blocks.{block}.0.in_layers.2.weight", 0) for block in first),
        context=_side(shapes, f"{UNET_ROOT}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1),
    )


def vae_sizes(shapes: Mapping[str, Shape]) -> VAESizes:
    """Return an autoencoder's sizes, given shapes by key of an original file.

    Raises:
        ModelError: see `unet_sizes`.
    """
    down = f"{VAE_ROOT}.encoder.down"
    return VAESizes(
        picture=_side(shapes, f"{VAE_ROOT}.encoder.conv_in.weight", 1),
        latent=_side(shapes, f"{VAE_ROOT}.decoder.conv_in.weight", 1),
        widths=tuple(_side(shapes, f"{down}.{level}.block.0.conv1.weight", 0) for level in range(len(VAE_MULTIPLES))),
    )


def _side(shapes: Mapping[str, Shape], key: str, dimension: int) -> int:
    shape = shapes.get(key, ())
    if len(shape) <= dimension or not shape[dimension]:
        raise ModelError("is missing or has an invalid shape", subject=key, fix=BROKEN)
    return shape[dimension]
