"""Layout tables of Stable Diffusion 1, its inpainting, 2 and SDXL.

Tensors of each network, counting a weight and a bias as two (a UNet transformer of depth d has 6 + 20 d):

    UNet, SD 1 and 2     686   22 resnets of 10, 14 of them with a skip (+ 2); 16 transformers of 26; 3 downsamplers and
                               3 upsamplers of 2; 5 layers at the ends of 2
    UNet, SDXL         1,680   17 resnets of 10, 11 with a skip; 5 transformers of depth 2 and 6 of depth 10;
                               2 downsamplers and 2 upsamplers; 5 layers at the ends, 2 added to the time embedding
    VAE                  248   24 resnets of 8, 4 of them with a skip (+ 2); 2 attentions of 10; 3 downsamplers and
                               3 upsamplers of 2; 8 layers of 2 at the ends
    CLIP, 12 layers      196   16 a layer, 2 tables, the last norm
    OpenCLIP             280   SD 2: 12 a layer (query, key and value are fused), 23 layers, 2 tables, the last norm
    OpenCLIP             389   SDXL: 32 layers, and the projection

    SD 1.5 and its inpainting     686 + 248 + 196 = 1,130
    SD 2.1, 512 and 768           686 + 248 + 280 = 1,214
    SDXL base           1,680 + 248 + 196 + 389 = 2,513

A file may contain more (`Layout.optional`): tensors that can be computed or serve only training, and in SD 2 the parts
of OpenCLIP above the layer that is used (its 24th block and its projection), which diffusers drops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

from fastdb.errors import ModelError
from fastdb.models.layouts.layout import CLIP_PREFIX, POSITION_IDS, UNET_ROOT, VAE_ROOT, Layout, Line

SD1_TEXT = "cond_stage_model.transformer"
SD2_TEXT = "cond_stage_model.model"
SDXL_TEXT = "conditioner.embedders.0.transformer"
SDXL_TEXT_2 = "conditioner.embedders.1.model"

TRAINING = (
    r"(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?",
    r"betas|posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas",
    r"model_ema\..+",
    r"first_stage_model\.loss\..+",
)
"""Noise schedule, running averages and losses, which a file of any family may contain."""
UNUSED_SD2 = rf"{re.escape(SD2_TEXT)}\.(transformer\.resblocks\.23\..+|text_projection|logit_scale|attn_mask)"
UNUSED_SDXL = rf"{re.escape(SDXL_TEXT_2)}\.(logit_scale|attn_mask)"

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
SDXL_ADDED = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}

VAE_MULTIPLES = (1, 2, 4, 4)
"""Width of each level as a multiple of the first level's."""
VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""1x1 convolutions in the original, matrices in diffusers."""

CLIP_LAYERS = (
    *(f"self_attn.{matrix}_proj" for matrix in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)
OPENCLIP_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPENCLIP_TABLES = {"token_embedding": "token_embedding.weight", "position_embedding": "positional_embedding"}


@dataclass(frozen=True, kw_only=True)
class UNet:
    """Sizes of a UNet that determine its names and weight dimensions."""

    multiples: tuple[int, ...]
    """Width of each level as a multiple of the first level's."""
    depths: tuple[int, ...]
    """Transformer blocks after each layer of a level; 0 means no transformer."""
    middle: int
    """Transformer blocks in the middle."""
    linear: bool
    """Whether the projections into and out of a transformer are matrices, [out, in], instead of 1x1 convolutions."""
    added: bool = False
    """Whether picture size, crop and pooled text are added to the time embedding (SDXL)."""
    layers: int = 2
    """Layers per level on the way down; the way up has an additional layer."""


SD1_UNET = UNet(multiples=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=False)
SD2_UNET = UNet(multiples=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=True)
SDXL_UNET = UNet(multiples=(1, 2, 4), depths=(0, 2, 10), middle=10, linear=True, added=True)


@cache
def layout_of(family: str) -> Layout:
    """Return the layout of a registered family.

    Families with a layout are sd1, sd1-inpainting, sd2 and sdxl.

    Raises:
        ModelError: the family has no layout.
    """
    if family == "sd1":
        text = _clip("text_encoder", SD1_TEXT, layers=12)
        return _layout(family, "Stable Diffusion 1.x", _unet(SD1_UNET), text, clips=[SD1_TEXT])
    if family == "sd1-inpainting":
        # Noise, mask and masked picture: only the first convolution differs, in its width.
        text = _clip("text_encoder", SD1_TEXT, layers=12)
        title = "Stable Diffusion 1.x inpainting"
        return _layout(family, title, _unet(SD1_UNET), text, clips=[SD1_TEXT], channels=9)
    if family == "sd2":
        text = _openclip("text_encoder", SD2_TEXT, layers=23, projection=False)
        return _layout(family, "Stable Diffusion 2.x", _unet(SD2_UNET), text, unused=UNUSED_SD2)
    if family == "sdxl":
        first = _clip("text_encoder", SDXL_TEXT, layers=12)
        second = _openclip("text_encoder_2", SDXL_TEXT_2, layers=32, projection=True)
        text = chain(first, second)
        return _layout(family, "SDXL", _unet(SDXL_UNET), text, clips=[SDXL_TEXT], unused=UNUSED_SDXL)
    raise ModelError("is an unsupported model family", subject=family, fix="Use sd1, sd1-inpainting, sd2 or sdxl.")


def _layout(
    family: str,
    title: str,
    unet: Iterable[Line],
    text: Iterator[Line],
    *,
    clips: Iterable[str] = (),
    unused: str | None = None,
    channels: int = 4,
) -> Layout:
    lines = {line.original: line for line in chain(unet, _vae(), text)}
    position_ids = tuple(f"{root}.{POSITION_IDS}" for root in clips)
    patterns = [*TRAINING, *map(re.escape, position_ids), *([unused] if unused else [])]
    return Layout(
        family=family,
        title=title,
        lines=lines,
        parts=tuple(dict.fromkeys(line.part for line in lines.values())),
        by_name={(line.part, name): line for line in lines.values() for name in line.names},
        channels=channels,
        position_ids=position_ids,
        optional=re.compile("|".join(patterns)),
    )


def _layer(part: str, ours: str, theirs: str) -> Iterator[Line]:
    """Yield the weight and the bias of a layer.

    It is named `ours` in diffusers and `theirs` in the original file.
    """
    for kind in ("weight", "bias"):
        yield Line(original=f"{theirs}.{kind}", part=part, names=(f"{ours}.{kind}",))


def _pointwise(part: str, ours: str, theirs: str, dims: tuple[int, int]) -> Iterator[Line]:
    """Yield the weight and the bias of a pointwise layer.

    `dims` are those of its weight in the original and in diffusers.
    """
    weight, bias = _layer(part, ours, theirs)
    yield Line(original=weight.original, part=part, names=weight.names, change="pointwise", dims=dims)
    yield bias


# The UNet. diffusers numbers blocks per level, the original numbers them consecutively. Input block 0 is the first
# convolution; then each level has its layers and, except the last, a downsampler. Output blocks go back up with an
# additional layer per level; the upsampler is inside the last of them.


def _unet(unet: UNet) -> Iterator[Line]:
    for ours, theirs in (UNET_ENDS | (SDXL_ADDED if unet.added else {})).items():
        yield from _layer("unet", ours, f"{UNET_ROOT}.{theirs}")
    last = len(unet.multiples) - 1
    for level, depth in enumerate(unet.depths):
        yield from _unet_down(unet, level, depth, last)
        yield from _unet_up(unet, level, unet.depths[last - level], last)
    yield from _unet_resnet("mid_block.resnets.0", f"{UNET_ROOT}.middle_block.0")
    yield from _transformer("mid_block.attentions.0", f"{UNET_ROOT}.middle_block.1", unet.middle, unet.linear)
    yield from _unet_resnet("mid_block.resnets.1", f"{UNET_ROOT}.middle_block.2")


def _unet_down(unet: UNet, level: int, depth: int, last: int) -> Iterator[Line]:
    ours = f"down_blocks.{level}"
    first = level * (unet.layers + 1) + 1
    for layer in range(unet.layers):
        theirs = f"{UNET_ROOT}.input_blocks.{first + layer}"
        wider = layer == 0 and level > 0 and unet.multiples[level] != unet.multiples[level - 1]
        yield from _unet_resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", skip=wider)
        if depth:
            yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depth, unet.linear)
    if level < last:
        theirs = f"{UNET_ROOT}.input_blocks.{first + unet.layers}.0.op"
        yield from _layer("unet", f"{ours}.downsamplers.0.conv", theirs)


def _unet_up(unet: UNet, level: int, depth: int, last: int) -> Iterator[Line]:
    """Yield a level, counted from the lowest resolution.

    Every resnet also gets the output of the way down, so it has a skip.
    """
    ours = f"up_blocks.{level}"
    for layer in range(unet.layers + 1):
        theirs = f"{UNET_ROOT}.output_blocks.{level * (unet.layers + 1) + layer}"
        yield from _unet_resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", skip=True)
        if depth:
            yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depth, unet.linear)
        if layer == unet.layers and level < last:
            place = 2 if depth else 1  # after the transformer, if any
            yield from _layer("unet", f"{ours}.upsamplers.0.conv", f"{theirs}.{place}.conv")


def _unet_resnet(ours: str, theirs: str, *, skip: bool = False) -> Iterator[Line]:
    for our, their in (UNET_RESNET | ({"conv_shortcut": "skip_connection"} if skip else {})).items():
        yield from _layer("unet", f"{ours}.{our}", f"{theirs}.{their}")


def _transformer(ours: str, theirs: str, depth: int, linear: bool) -> Iterator[Line]:
    """Yield a spatial transformer, whose inner names are the same."""
    dims = (2, 2) if linear else (4, 4)
    yield from _layer("unet", f"{ours}.norm", f"{theirs}.norm")
    for layer in ("proj_in", "proj_out"):
        yield from _pointwise("unet", f"{ours}.{layer}", f"{theirs}.{layer}", dims)
    for block in (f"transformer_blocks.{number}" for number in range(depth)):
        for name in (f"{block}.attn{number}.to_{matrix}.weight" for number in (1, 2) for matrix in "qkv"):
            yield Line(original=f"{theirs}.{name}", part="unet", names=(f"{ours}.{name}",))
        for layer in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
            yield from _layer("unet", f"{ours}.{block}.{layer}", f"{theirs}.{block}.{layer}")


# The autoencoder, the same in all families. The original numbers the decoder's levels by resolution, so backwards.


def _vae() -> Iterator[Line]:
    for layer in ("quant_conv", "post_quant_conv"):
        yield from _layer("vae", layer, f"{VAE_ROOT}.{layer}")
    last = len(VAE_MULTIPLES) - 1
    for half in ("encoder", "decoder"):
        for ours, theirs in VAE_ENDS.items():
            yield from _layer("vae", f"{half}.{ours}", f"{VAE_ROOT}.{half}.{theirs}")
        yield from _vae_middle(f"{half}.mid_block", f"{VAE_ROOT}.{half}.mid")
    for level, multiple in enumerate(VAE_MULTIPLES):
        ours, theirs = f"encoder.down_blocks.{level}", f"{VAE_ROOT}.encoder.down.{level}"
        yield from _vae_level(ours, theirs, layers=2, skip=level > 0 and multiple != VAE_MULTIPLES[level - 1])
        if level < last:
            yield from _layer("vae", f"{ours}.downsamplers.0.conv", f"{theirs}.downsample.conv")
        ours, theirs = f"decoder.up_blocks.{last - level}", f"{VAE_ROOT}.decoder.up.{level}"
        yield from _vae_level(ours, theirs, layers=3, skip=level < last and multiple != VAE_MULTIPLES[level + 1])
        if level > 0:
            yield from _layer("vae", f"{ours}.upsamplers.0.conv", f"{theirs}.upsample.conv")


def _vae_middle(ours: str, theirs: str) -> Iterator[Line]:
    for number in range(2):
        yield from _vae_resnet(f"{ours}.resnets.{number}", f"{theirs}.block_{number + 1}", skip=False)
    ours, theirs = f"{ours}.attentions.0", f"{theirs}.attn_1"
    yield from _layer("vae", f"{ours}.group_norm", f"{theirs}.norm")
    for our, their in VAE_ATTENTION.items():
        yield from _pointwise("vae", f"{ours}.{our}", f"{theirs}.{their}", (4, 2))


def _vae_level(ours: str, theirs: str, *, layers: int, skip: bool) -> Iterator[Line]:
    """Yield a level, with a first skip where the width changes."""
    for number in range(layers):
        yield from _vae_resnet(f"{ours}.resnets.{number}", f"{theirs}.block.{number}", skip=skip and number == 0)


def _vae_resnet(ours: str, theirs: str, *, skip: bool) -> Iterator[Line]:
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        yield from _layer("vae", f"{ours}.{layer}", f"{theirs}.{layer}")
    if skip:
        yield from _layer("vae", f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut")


# Text encoders, which lie below `root` in an original file.


def _clip(part: str, root: str, *, layers: int) -> Iterator[Line]:
    """Yield CLIP, the text encoder of SD 1 and first of SDXL.

    It has the same names in both layouts.
    """
    for table in ("token_embedding", "position_embedding"):
        name = f"{CLIP_PREFIX}embeddings.{table}.weight"
        yield Line(original=f"{root}.{name}", part=part, names=(name,))
    places = [f"{CLIP_PREFIX}encoder.layers.{number}.{layer}" for number in range(layers) for layer in CLIP_LAYERS]
    for place in (*places, f"{CLIP_PREFIX}final_layer_norm"):
        yield from _layer(part, place, f"{root}.{place}")


def _openclip(part: str, root: str, *, layers: int, projection: bool) -> Iterator[Line]:
    """Yield OpenCLIP, the text encoder of SD 2 and second of SDXL.

    Query, key and value are fused in the original.

    Args:
        layers: as in diffusers. SD 2 has 24 in the original and uses the penultimate output, so 23.
        projection: with the projection of the pooled text. The original multiplies by it from the right, x @ P,
            diffusers has a linear layer, x @ W.T, so P is W transposed. P is square, so shapes reveal no mistake.
    """
    for ours, theirs in OPENCLIP_TABLES.items():
        yield Line(original=f"{root}.{theirs}", part=part, names=(f"{CLIP_PREFIX}embeddings.{ours}.weight",))
    yield from _layer(part, f"{CLIP_PREFIX}final_layer_norm", f"{root}.ln_final")
    if projection:
        original = f"{root}.text_projection"
        yield Line(original=original, part=part, names=("text_projection.weight",), change="transposed")
    for number in range(layers):
        ours, theirs = f"{CLIP_PREFIX}encoder.layers.{number}", f"{root}.transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            names = tuple(f"{ours}.self_attn.{matrix}_proj.{kind}" for matrix in "qkv")
            yield Line(original=f"{theirs}.attn.in_proj_{kind}", part=part, names=names, change="fused")
        for our, their in OPENCLIP_LAYERS.items():
            yield from _layer(part, f"{ours}.{our}", f"{theirs}.{their}")
