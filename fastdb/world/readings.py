"""Readings of drawn pictures by a small network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fastdb.world.draw import SIDE
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene

HEADS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
"""The network's outputs, named like the attributes of a `Reading`, and the words of each."""

WEIGHTS = Path(__file__).parent / "judge.safetensors"
"""The network's weights in half precision, made by `mini/make.py` in the repository."""


class Judge(nn.Module):
    """Classifier of four strided convolutions, a shared layer and four linear heads."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 96, 96), []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 96), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(96, len(words)) for name, words in HEADS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scores of each head's words, (n, words), for float pictures (n, 3, 64, 64) in -1 to 1."""
        features = self.body(pictures)
        return {name: head(features) for name, head in self.heads.items()}


@cache
def _load_judge() -> Judge:
    """Load the judge that ships with the package, on the CPU, in float32."""
    model = Judge()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return model.eval()


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Convert pictures to float32 (n, 3, 64, 64) in -1 to 1; other sizes are resized."""
    small = (picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures)
    arrays = [np.asarray(picture, np.float32) for picture in small]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1.0


@dataclass(frozen=True)
class Reading:
    """The words that describe a picture."""

    shape: str
    colour: str
    background: str
    texture: str


def expected_reading(scene: Scene) -> Reading:
    """Return the correct reading of a scene's picture."""
    return Reading(scene.shape, scene.colour_name, scene.background_name, scene.texture)


@torch.no_grad()
def read(pictures: Sequence[Image.Image]) -> list[Reading]:
    """Classify pictures of any size with the judge."""
    if not pictures:
        return []
    best = {head: scores.argmax(1).tolist() for head, scores in _load_judge()(to_tensor(pictures)).items()}
    return [Reading(*(HEADS[head][best[head][number]] for head in HEADS)) for number in range(len(pictures))]
