"""What a picture of the drawn world shows, read back from its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from PIL import Image

from fastdb.world.draw import DARK, LIGHT, SIDE, draw, second_tone
from fastdb.world.judge import HEADS, judge, to_tensor
from fastdb.world.scene import BACKGROUNDS, Colour, Pose, Scene
from fastdb.world.subjects import SUBJECTS, Subject

GRID = 32
"""Side at which subjects are looked for, in pixels."""

NEAR = 80.0
"""A pixel has a part's colour when it is no farther from it than this, in RGB from 0 to 255, and nearer to it than to
the other parts, to contours, to what is light, and to the background's two tones."""

PRESENT = 0.45
"""Least agreement of each part with where it belongs: intersection over union, from 0 to 1."""

SIZES = (0.32, 0.35, 0.38, 0.41)
SHIFTS = (-0.06, -0.03, 0.0, 0.03, 0.06)
TILTS = (-0.16, -0.08, 0.0, 0.08, 0.16)
"""Poses in which subjects are looked for: a grid over those that pictures have (`scene.random_pose`)."""


@dataclass(frozen=True)
class Reading:
    """The words for what a picture shows."""

    shape: str
    colour: str
    background: str
    texture: str


@dataclass(frozen=True)
class Likeness:
    """How much of a subject a picture shows.

    Attributes:
        layout: the least intersection over union of any part's colour with where it belongs, in the best pose.
        shape: intersection over union of all parts together, in that pose.
        present: whether every part is where it belongs (`PRESENT`).
    """

    layout: float
    shape: float
    present: bool


def truth(scene: Scene) -> Reading:
    """What should be read off the picture of a scene."""
    return Reading(scene.shape, scene.colour_name, scene.background_name, scene.texture)


@torch.no_grad()
def read(pictures: Sequence[Image.Image]) -> list[Reading]:
    """Read pictures of any size with the judge."""
    if not pictures:
        return []
    said = judge()(to_tensor(pictures))
    best = {head: scores.argmax(1).tolist() for head, scores in said.items()}
    return [Reading(*(HEADS[head][best[head][at]] for head in HEADS)) for at in range(len(pictures))]


def shows(pictures: Sequence[Image.Image], subject: Subject) -> list[Likeness]:
    """How far each picture shows the subject, in the pose of the grid that fits it best.

    The judge's word for the background is taken, so that what lies behind is not mistaken for a part.
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
    # (pictures, poses, parts): how many pixels both have, and how many either has.
    both = torch.einsum("nkp,tkp->ntk", seen, wanted)
    either = seen.sum(-1)[:, None] + wanted.sum(-1)[None] - both
    parts = both / either.clamp(min=1.0)
    whole_seen, whole_wanted = seen.amax(1), wanted.amax(1)
    overlap = whole_seen @ whole_wanted.T
    whole = overlap / (whole_seen.sum(-1)[:, None] + whole_wanted.sum(-1)[None] - overlap).clamp(min=1.0)
    least = parts.amin(-1)
    best = (least + 0.1 * whole).argmax(1)
    found = []
    for number, pose in enumerate(best.tolist()):
        layout, shape = float(least[number, pose]), float(whole[number, pose])
        found.append(Likeness(layout, shape, layout >= PRESENT))
    return found


def recognise(instance_images: Sequence[Image.Image]) -> Subject | None:
    """Which subject instance images show, or none: more than half of them must show it."""
    for subject in SUBJECTS.values():
        present = [likeness.present for likeness in shows(instance_images, subject)]
        if sum(present) > len(present) / 2:
            return subject
    return None


def _parts(picture: Image.Image, subject: Subject, background: Colour) -> torch.Tensor:
    """Where each part's colour is: float (parts, GRID * GRID) of 0 and 1."""
    colours = [*subject.parts, DARK, LIGHT, background, second_tone(background)]
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).resize((GRID, GRID), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(small, np.float32)).view(-1, 3)
    distances = torch.cdist(pixels, torch.tensor(colours, dtype=torch.float32))
    nearest = distances.argmin(1)
    nearest[distances.amin(1) > NEAR] = -1
    return torch.stack([(nearest == part).float() for part in range(len(subject.parts))])


@cache
def _templates(subject: Subject) -> torch.Tensor:
    """Where each part is, over a grid of poses: (poses, parts, GRID * GRID)."""
    drawn = []
    for size, x, y, tilt in product(SIZES, SHIFTS, SHIFTS, TILTS):
        picture = draw(subject.scene("white", "plain", Pose(size, 0.5 + x, 0.5 + y, tilt)))
        drawn.append(_parts(picture, subject, BACKGROUNDS["white"]))
    return torch.stack(drawn)
