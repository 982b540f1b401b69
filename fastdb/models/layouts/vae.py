"""The autoencoder, the same in all families: the original numbers the decoder's levels by resolution, so backwards."""

from __future__ import annotations

from collections.abc import Iterator

from fastdb.models.layouts.tensor_mapping import Line, both, pointwise

PART = "vae"
ROOT = "first_stage_model"

MULTIPLES = (1, 2, 4, 4)
"""The width of each level as a multiple of the first one's."""
ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""Convolutions of one pixel in the original, matrices in diffusers."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers before 0.17 named them."""


def lines() -> Iterator[Line]:
    """Every tensor of the autoencoder."""
    for layer in ("quant_conv", "post_quant_conv"):
        yield from both(PART, layer, f"{ROOT}.{layer}")
    last = len(MULTIPLES) - 1
    for half in ("encoder", "decoder"):
        for ours, theirs in ENDS.items():
            yield from both(PART, f"{half}.{ours}", f"{ROOT}.{half}.{theirs}")
        yield from _middle(half)
    for level, multiple in enumerate(MULTIPLES):
        ours, theirs = f"encoder.down_blocks.{level}", f"{ROOT}.encoder.down.{level}"
        yield from _level(ours, theirs, layers=2, skip=level > 0 and multiple != MULTIPLES[level - 1])
        if level < last:
            yield from both(PART, f"{ours}.downsamplers.0.conv", f"{theirs}.downsample.conv")
        ours, theirs = f"decoder.up_blocks.{last - level}", f"{ROOT}.decoder.up.{level}"
        yield from _level(ours, theirs, layers=3, skip=level < last and multiple != MULTIPLES[level + 1])
        if level > 0:
            yield from both(PART, f"{ours}.upsamplers.0.conv", f"{theirs}.upsample.conv")


def modern(name: str) -> str:
    """Today's name of a tensor, given an older one."""
    if ".attentions.0." not in name:
        return name
    head, tail = name.split(".attentions.0.")
    layer, _, kind = tail.rpartition(".")
    return f"{head}.attentions.0.{OLD_ATTENTION.get(layer, layer)}.{kind}"


def _middle(half: str) -> Iterator[Line]:
    ours, theirs = f"{half}.mid_block", f"{ROOT}.{half}.mid"
    for number in range(2):
        yield from _resnet(f"{ours}.resnets.{number}", f"{theirs}.block_{number + 1}", skip=False)
    ours, theirs = f"{ours}.attentions.0", f"{theirs}.attn_1"
    yield from both(PART, f"{ours}.group_norm", f"{theirs}.norm")
    for our, their in ATTENTION.items():
        yield from pointwise(PART, f"{ours}.{our}", f"{theirs}.{their}", (4, 2))


def _level(ours: str, theirs: str, *, layers: int, skip: bool) -> Iterator[Line]:
    """The layers of a level; the first has a skip where the width changes."""
    for number in range(layers):
        yield from _resnet(f"{ours}.resnets.{number}", f"{theirs}.block.{number}", skip=skip and number == 0)


def _resnet(ours: str, theirs: str, *, skip: bool) -> Iterator[Line]:
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        yield from both(PART, f"{ours}.{layer}", f"{theirs}.{layer}")
    if skip:
        yield from both(PART, f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut")
