"""The UNet: diffusers numbers blocks by level, the original numbers them through.

Input block 0 is the first convolution; then each level has its layers and, but for the last, a halving. Output blocks
go back up, one layer more a level, the doubling inside the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastdb.models.layouts.tensor_mapping import Line, both, pointwise

PART = "unet"
ROOT = "model.diffusion_model"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ADDED = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


@dataclass(frozen=True, kw_only=True)
class UNet:
    """What of a UNet decides about its names and the dimensions of its weights."""

    multiples: tuple[int, ...]
    """The width of each level as a multiple of the first one's."""
    depths: tuple[int, ...]
    """Transformer blocks behind each layer of a level; 0 is no transformer."""
    middle: int
    """Transformer blocks in the middle."""
    linear: bool
    """The projections into and out of a transformer are matrices, [out, in], and not convolutions of one pixel."""
    added: bool = False
    """Picture size, crop and pooled text are added to the time (SDXL)."""
    layers: int = 2
    """Layers a level on the way down; one more on the way up."""

    def lines(self) -> Iterator[Line]:
        """Every tensor of the UNet."""
        for ours, theirs in (ENDS | (ADDED if self.added else {})).items():
            yield from both(PART, ours, f"{ROOT}.{theirs}")
        last = len(self.multiples) - 1
        for level, depth in enumerate(self.depths):
            yield from self._down(level, depth, last)
            yield from self._up(level, self.depths[last - level], last)
        yield from _resnet("mid_block.resnets.0", f"{ROOT}.middle_block.0")
        yield from self._transformer("mid_block.attentions.0", f"{ROOT}.middle_block.1", self.middle)
        yield from _resnet("mid_block.resnets.1", f"{ROOT}.middle_block.2")

    def _down(self, level: int, depth: int, last: int) -> Iterator[Line]:
        ours = f"down_blocks.{level}"
        first = level * (self.layers + 1) + 1
        for layer in range(self.layers):
            theirs = f"{ROOT}.input_blocks.{first + layer}"
            wider = layer == 0 and level > 0 and self.multiples[level] != self.multiples[level - 1]
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", skip=wider)
            if depth:
                yield from self._transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depth)
        if level < last:
            yield from both(PART, f"{ours}.downsamplers.0.conv", f"{ROOT}.input_blocks.{first + self.layers}.0.op")

    def _up(self, level: int, depth: int, last: int) -> Iterator[Line]:
        """`level` counts from the narrowest picture; every layer is given what came down as well, so has a skip."""
        ours = f"up_blocks.{level}"
        for layer in range(self.layers + 1):
            theirs = f"{ROOT}.output_blocks.{level * (self.layers + 1) + layer}"
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", skip=True)
            if depth:
                yield from self._transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depth)
            if layer == self.layers and level < last:
                place = 2 if depth else 1  # after the transformer, where there is one
                yield from both(PART, f"{ours}.upsamplers.0.conv", f"{theirs}.{place}.conv")

    def _transformer(self, ours: str, theirs: str, depth: int) -> Iterator[Line]:
        """A spatial transformer; inside it both layouts use the same names."""
        dims = (2, 2) if self.linear else (4, 4)
        yield from both(PART, f"{ours}.norm", f"{theirs}.norm")
        for layer in ("proj_in", "proj_out"):
            yield from pointwise(PART, f"{ours}.{layer}", f"{theirs}.{layer}", dims)
        for block in (f"transformer_blocks.{number}" for number in range(depth)):
            for name in (f"{block}.attn{number}.to_{matrix}.weight" for number in (1, 2) for matrix in "qkv"):
                yield Line(original=f"{theirs}.{name}", part=PART, names=(f"{ours}.{name}",))
            for layer in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
                yield from both(PART, f"{ours}.{block}.{layer}", f"{theirs}.{block}.{layer}")


def _resnet(ours: str, theirs: str, *, skip: bool = False) -> Iterator[Line]:
    for our, their in (RESNET | ({"conv_shortcut": "skip_connection"} if skip else {})).items():
        yield from both(PART, f"{ours}.{our}", f"{theirs}.{their}")
