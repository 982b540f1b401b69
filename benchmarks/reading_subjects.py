"""Subjects that test the reading of subjects, none of which ships with the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdb.world.draw import rgb
from fastdb.world.scene import (
    CAR_BODY,
    CAR_CABIN,
    FISH_BODY,
    FISH_EYE,
    FISH_TAIL,
    HOUSE_WALL,
    MUG_BODY,
    MUG_HANDLE,
    WHEELS,
    Layer,
    Outline,
)
from fastdb.world.scene import FIGURES as CLASSES
from fastdb.world.subjects import Subject

TEAL, LIME, CORAL, NAVY = "#10a0a0", "#b4dc28", "#f87860", "#202c78"
SAND, CRIMSON, SKY, VIOLET, ORANGE = "#d8b070", "#a01848", "#48a8f0", "#7838c8", "#f08418"


@dataclass(frozen=True)
class Marked:
    """A subject with the layers that are its mark, and its two main colours."""

    subject: Subject
    mark: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """The subject's name."""
        return self.subject.name


def marked(
    name: str, shape: str, layers: tuple[Layer, ...], mark: tuple[Layer, ...], first: str, second: str
) -> Marked:
    """Return a subject whose mark is painted last."""
    return Marked(Subject(name, shape, (*layers, *mark), (rgb(first), rgb(second))), mark)


def disc(x: float, y: float, radius: float, colour: str) -> Layer:
    """Return a disc without a contour."""
    turns = (2 * math.pi * number / 32 for number in range(32))
    return Layer(
        tuple((x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns), colour, edge=False
    )


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """Return a rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def clipped(outline: Outline, below: float) -> Outline:
    """Return the part of a convex outline with y of at least `below`."""
    points: list[tuple[float, float]] = []
    for (x, y), (next_x, next_y) in zip(outline, (*outline[1:], outline[0]), strict=True):
        if y >= below:
            points.append((x, y))
        if (y >= below) != (next_y >= below):
            share = (below - y) / (next_y - y)
            points.append((x + share * (next_x - x), below))
    return tuple(points)


BALL = CLASSES["ball"][0].outline
DOG = CLASSES["dog"]
BOAT = CLASSES["boat"]
TREE = CLASSES["tree"]

TUNING = (
    marked(
        "dog",
        "dog",
        (
            *(Layer(DOG[part].outline, TEAL) for part in (0, 1, 2)),
            Layer(DOG[3].outline, CORAL),
            Layer(DOG[4].outline, TEAL),
            Layer(DOG[5].outline, NAVY),
            DOG[6],
        ),
        (disc(0.2, 0.2, 0.22, LIME),),
        CORAL,
        TEAL,
    ),
    marked(
        "mug",
        "mug",
        (Layer(MUG_HANDLE.outline, TEAL), Layer(MUG_BODY, TEAL), Layer(clipped(MUG_BODY, 0.12), LIME)),
        (Layer(((-0.18, -0.28), (0.2, 0.12), (-0.18, 0.52), (-0.56, 0.12)), ORANGE, edge=False),),
        TEAL,
        LIME,
    ),
    marked(
        "ball",
        "ball",
        (Layer(BALL, SKY), Layer(clipped(BALL, 0.0), CRIMSON)),
        (Layer(box(-0.45, -0.55, -0.05, -0.2), SAND, edge=False),),
        SKY,
        CRIMSON,
    ),
    marked(
        "tree",
        "tree",
        (TREE[0], Layer(TREE[1].outline, VIOLET), Layer(TREE[2].outline, LIME)),
        (Layer(((-0.3, 0.42), (0.0, 0.12), (0.3, 0.42)), SAND, edge=False),),
        VIOLET,
        LIME,
    ),
)
"""Subjects that thresholds were chosen on."""

SEEN = (
    marked(
        "fish",
        "fish",
        (Layer(FISH_TAIL, LIME), Layer(FISH_BODY, VIOLET), *FISH_EYE),
        (Layer(((-0.2, -0.3), (0.15, 0.02), (-0.2, 0.34)), SAND, edge=False),),
        VIOLET,
        LIME,
    ),
    marked(
        "house",
        "house",
        (
            Layer(HOUSE_WALL, SAND),
            Layer(((-0.98, -0.14), (0.0, -0.96), (0.98, -0.14)), NAVY),
            Layer(box(-0.5, 0.3, -0.12, 0.88), "dark"),
        ),
        (disc(0.3, 0.3, 0.24, CRIMSON),),
        SAND,
        NAVY,
    ),
    marked(
        "car",
        "car",
        (Layer(CAR_CABIN, SKY), Layer(CAR_BODY, CORAL), *WHEELS),
        (Layer(box(-0.2, 0.0, 0.2, 0.34), NAVY, edge=False),),
        CORAL,
        SKY,
    ),
)
"""Subjects that were looked at while the reading was written, but not to choose thresholds."""

KEPT_OUT = (
    marked(
        "boat",
        "boat",
        (BOAT[0], Layer(BOAT[1].outline, ORANGE), Layer(BOAT[2].outline, TEAL), Layer(BOAT[3].outline, CRIMSON)),
        (Layer(((-0.3, 0.34), (0.05, 0.34), (0.05, 0.68), (-0.3, 0.68)), SKY, edge=False),),
        CRIMSON,
        ORANGE,
    ),
    marked(
        "heart",
        "heart",
        (Layer(CLASSES["heart"][0].outline, NAVY), Layer(((-0.62, -0.3), (0.62, -0.3), (0.5, 0.1), (-0.5, 0.1)), TEAL)),
        (disc(0.0, 0.42, 0.2, CORAL),),
        NAVY,
        TEAL,
    ),
    marked(
        "star",
        "star",
        (Layer(CLASSES["star"][0].outline, CORAL), Layer(((-0.45, -0.1), (0.45, -0.1), (0.3, 0.3), (-0.3, 0.3)), TEAL)),
        (disc(0.0, -0.42, 0.17, VIOLET),),
        CORAL,
        TEAL,
    ),
)
"""Subjects that were drawn before the reading was written and first read after it was finished."""
