"""Readings of drawn pictures by a small network and by subject templates."""

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

from fastdb.world.draw import DARK, LIGHT, SIDE, draw, second_tone
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Colour, Pose, Scene
from fastdb.world.subjects import SUBJECTS, Subject

HEADS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
"""The network's outputs, named like the attributes of a `Reading`, and the words of each."""

WEIGHTS = Path(__file__).parent / "judge.safetensors"
"""The network's weights in half precision, made by `mini/make.py` in the repository."""

GRID = 32
"""Side in pixels at which subjects are searched."""

NEAR = 80.0
"""Largest distance of a pixel from a part's colour, in RGB from 0 to 255. The pixel must also be nearer to it than to
the other parts, to `DARK`, to `LIGHT` and to the two tones of the background."""

PRESENT = 0.45
"""Smallest intersection over union of each part with its place if the subject is present."""

SIZES = (0.32, 0.35, 0.38, 0.41)
SHIFTS = (-0.06, -0.03, 0.0, 0.03, 0.06)
TILTS = (-0.16, -0.08, 0.0, 0.08, 0.16)
"""Grid of poses in which subjects are searched; it covers those of `scene.random_pose`."""


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


@dataclass(frozen=True)
class Likeness:
    """Agreement of a picture with a subject.

    Attributes:
        layout: smallest intersection over union of a part's colour with its place, in the best pose.
        shape: intersection over union of all parts together, in that pose.
        present: whether `layout` reaches `PRESENT`.
    """

    layout: float
    shape: float
    present: bool


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


def find_subject(pictures: Sequence[Image.Image], subject: Subject) -> list[Likeness]:
    """Measure how well each picture shows the subject in the best pose of the grid.

    The background's colour is that of the judge's reading, so that the background is not counted as a part.
    """
    if not pictures:
        return []
    seen = torch.stack(
        [
            _parts(picture, subject, BACKGROUNDS[reading.background])
            for picture, reading in zip(pictures, read(pictures), strict=True)
        ]
    )
    wanted = _templates(subject)
    # (pictures, poses, parts): pixels of the intersection and of the union.
    both = torch.einsum("nkp,tkp->ntk", seen, wanted)
    either = seen.sum(-1)[:, None] + wanted.sum(-1)[None] - both
    parts = both / either.clamp(min=1.0)
    whole_seen, whole_wanted = seen.amax(1), wanted.amax(1)
    overlap = whole_seen @ whole_wanted.T
    whole = overlap / (whole_seen.sum(-1)[:, None] + whole_wanted.sum(-1)[None] - overlap).clamp(min=1.0)
    least = parts.amin(-1)
    best = (least + 0.1 * whole).argmax(1)
    likenesses = []
    for number, pose in enumerate(best.tolist()):
        layout, shape = float(least[number, pose]), float(whole[number, pose])
        likenesses.append(Likeness(layout, shape, layout >= PRESENT))
    return likenesses


def recognise(instance_images: Sequence[Image.Image]) -> Subject | None:
    """Return the subject that more than half of the instance images show, or None."""
    for subject in SUBJECTS.values():
        present = [likeness.present for likeness in find_subject(instance_images, subject)]
        if sum(present) > len(present) / 2:
            return subject
    return None


def _parts(picture: Image.Image, subject: Subject, background: Colour) -> torch.Tensor:
    """Return a mask of each part's colour, float (parts, GRID * GRID) of 0 and 1."""
    colours = [*subject.parts, DARK, LIGHT, background, second_tone(background)]
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).resize((GRID, GRID), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(small, np.float32)).view(-1, 3)
    distances = torch.cdist(pixels, torch.tensor(colours, dtype=torch.float32))
    nearest = distances.argmin(1)
    nearest[distances.amin(1) > NEAR] = -1
    return torch.stack([(nearest == part).float() for part in range(len(subject.parts))])


@cache
def _templates(subject: Subject) -> torch.Tensor:
    """Return the masks of each part over the grid of poses, (poses, parts, GRID * GRID)."""
    masks = []
    for size, x, y, tilt in itertools.product(SIZES, SHIFTS, SHIFTS, TILTS):
        picture = draw(subject.scene("white", "plain", Pose(size, 0.5 + x, 0.5 + y, tilt)))
        masks.append(_parts(picture, subject, BACKGROUNDS["white"]))
    return torch.stack(masks)
