"""The judge: a small network that reads class, colour, background and texture off a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fastdb.world.draw import SIDE
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

HEADS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
"""What it says of a picture (attributes of a `readings.Reading`), and the words it chooses from."""

WEIGHTS = Path(__file__).parent / "judge.safetensors"
"""Its weights in half precision; `mini/` in the repository makes them."""


class Judge(nn.Module):
    """Four strided convolutions and a layer shared by four linear heads."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 96, 96), []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 96), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(96, len(words)) for name, words in HEADS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores of each head's words, (n, words), for float pictures (n, 3, 64, 64) in -1 to 1."""
        features = self.body(pictures)
        return {name: head(features) for name, head in self.heads.items()}


@cache
def judge() -> Judge:
    """The trained judge that ships with the package, on the CPU, in float32."""
    model = Judge()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return model.eval()


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as float32 (n, 3, 64, 64) in -1 to 1; other sizes are resized."""
    arrays = [np.asarray(one.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) for one in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1.0
