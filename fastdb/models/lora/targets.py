"""Layers that a LoRA adapts, by their names in diffusers; needs no torch.

Names of the text encoder begin with `text_model.`, which newer versions of transformers leave out of their modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

from fastdb.models.layouts.layout import modern_name

Shape: TypeAlias = tuple[int, ...]
Targets: TypeAlias = Literal["kohya", "kohya-conv", "attention"]

DOWN, UP, ALPHA = "lora_down", "lora_up", "alpha"
"""Last parts of the names in a checkpoint: of the factors of a layer, and of the number that scales their product."""

_ATTENTION = r".+\.attn[12]\.to_(?:q|k|v|out\.0)"
_TRANSFORMER = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+\..+"
_CONVOLUTION = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:resnets\.\d+\..+|(?:down|up)samplers\.0\.conv)"
_ENCODER = r"text_model\.encoder\.layers\.\d+\."
_LAYERS: dict[tuple[str, str], str] = {
    ("unet", "kohya"): _TRANSFORMER,
    ("unet", "kohya-conv"): f"{_TRANSFORMER}|{_CONVOLUTION}",
    ("unet", "attention"): _ATTENTION,
    ("text_encoder", "kohya"): rf"{_ENCODER}(?:self_attn|mlp)\..+",
    ("text_encoder", "kohya-conv"): rf"{_ENCODER}(?:self_attn|mlp)\..+",
    ("text_encoder", "attention"): rf"{_ENCODER}self_attn\.(?:q|k|v|out)_proj",
}
"""Names of adapted layers by part and setting: those of sd-scripts without and with convolutions, and of diffusers."""


def target_layers(part: str, shapes: Mapping[str, Shape], targets: str) -> dict[str, Shape]:
    """Return the shape of the weight of each adapted layer by the layer's name, sorted.

    Args:
        part: "unet" or "text_encoder".
        shapes: of the part's tensors, by names in diffusers.
        targets: "kohya", "kohya-conv" or "attention".
    """
    pattern, layers = re.compile(_LAYERS[part, targets]), {}
    for stored, shape in shapes.items():
        name, _, kind = modern_name(part, stored).rpartition(".")
        if kind == "weight" and len(shape) > 1 and pattern.fullmatch(name):
            layers[name] = shape
    return dict(sorted(layers.items()))


def factor_shapes(shape: Shape, rank: int) -> tuple[Shape, Shape]:
    """Return the shapes of the down and up factor for a weight of a linear layer or a convolution.

    Kernel, stride and padding of a convolution belong to its down factor; the up factor has a kernel of one pixel.
    """
    return (rank, *shape[1:]), (shape[0], rank, *[1] * len(shape[2:]))
