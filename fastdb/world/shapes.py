"""What the classes of the drawn world look like: outlines in a square from -1 to 1, y pointing down."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]
Outline = tuple[Point, ...]


@dataclass(frozen=True)
class Layer:
    """One painted outline.

    Attributes:
        fill: "body" is the object's colour, "shade" that colour darker, "dark" and "light" are the same everywhere;
            anything else is a colour of its own, `#rrggbb`.
        edge: whether it has a dark contour.
    """

    outline: Outline
    fill: str = "body"
    edge: bool = True


Figure = tuple[Layer, ...]


def circle(x: float, y: float, radius: float, radius_y: float | None = None, points: int = 40) -> Outline:
    """A circle around (x, y), or an ellipse with another radius up and down."""
    high = radius if radius_y is None else radius_y
    turns = (2 * math.pi * number / points for number in range(points))
    return tuple((x + radius * math.cos(turn), y + high * math.sin(turn)) for turn in turns)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """A rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def ring(x: float, y: float, outer: float, inner: float) -> Outline:
    """The right half of a ring, as a mug's handle."""
    turns = [math.pi * (number / 16 - 0.5) for number in range(17)]
    out = [(x + outer * math.cos(turn), y + outer * math.sin(turn)) for turn in turns]
    back = [(x + inner * math.cos(turn), y + inner * math.sin(turn)) for turn in reversed(turns)]
    return tuple(out + back)


def star(radius: float = 1.0, waist: float = 0.45) -> Outline:
    """A star of five points, `radius` and `waist` away from its middle at the tips and between them."""
    points = []
    for number in range(10):
        length, turn = (radius if number % 2 == 0 else waist), math.pi * number / 5 - math.pi / 2
        points.append((length * math.cos(turn), 0.06 + length * math.sin(turn)))
    return tuple(points)


def heart() -> Outline:
    """The heart curve: 16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t (mathworld.wolfram.com/HeartCurve.html)."""
    points = []
    for number in range(48):
        t = 2 * math.pi * number / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -y / 15.5 - 0.08))
    return tuple(points)


MUG_BODY = ((-0.8, -0.78), (0.42, -0.78), (0.34, 0.82), (-0.72, 0.82))
FISH_BODY = circle(-0.22, 0.0, 0.74, 0.56)
FISH_TAIL = ((0.34, 0.0), (0.98, -0.58), (0.84, 0.0), (0.98, 0.58))
HOUSE_WALL = box(-0.72, -0.14, 0.72, 0.88)
CAR_BODY = ((-0.98, 0.42), (-0.98, -0.02), (-0.62, -0.1), (0.9, -0.06), (0.98, 0.1), (0.98, 0.42))
CAR_CABIN = ((-0.62, -0.1), (-0.36, -0.6), (0.36, -0.6), (0.66, -0.08))

WHEELS = (Layer(circle(-0.54, 0.46, 0.27), "dark"), Layer(circle(0.54, 0.46, 0.27), "dark"))
FISH_EYE = (Layer(circle(-0.58, -0.14, 0.14), "light"), Layer(circle(-0.6, -0.14, 0.06), "dark", edge=False))
HOUSE_OPENINGS = (Layer(box(-0.46, 0.3, -0.08, 0.88), "dark"), Layer(box(0.18, 0.12, 0.54, 0.5), "light"))
MUG_HANDLE = Layer(ring(0.36, -0.02, 0.58, 0.27))

FIGURES: dict[str, Figure] = {
    "ball": (
        Layer(circle(0, 0, 0.92)),
        Layer(circle(-0.3, -0.36, 0.2, 0.15), "light", edge=False),
    ),
    "boat": (
        Layer(box(-0.06, -0.95, 0.06, 0.3), "dark", edge=False),
        Layer(((0.1, -0.86), (0.86, 0.12), (0.1, 0.12)), "light"),
        Layer(((-0.1, -0.62), (-0.1, 0.12), (-0.66, 0.12))),
        Layer(((-0.98, 0.28), (0.98, 0.28), (0.6, 0.82), (-0.6, 0.82))),
    ),
    "car": (
        Layer(CAR_CABIN),
        Layer(CAR_BODY),
        Layer(((-0.46, -0.14), (-0.28, -0.48), (0.0, -0.48), (0.0, -0.14)), "light", edge=False),
        *WHEELS,
    ),
    "dog": (
        Layer(((0.56, -0.02), (0.78, -0.56), (0.96, -0.56), (0.82, 0.16))),
        Layer(box(-0.5, 0.3, -0.2, 0.92)),
        Layer(box(0.4, 0.3, 0.7, 0.92)),
        Layer(((-0.56, -0.1), (0.76, -0.1), (0.76, 0.52), (-0.56, 0.52))),
        Layer(((-0.98, -0.42), (-0.72, -0.74), (-0.2, -0.74), (-0.2, 0.06), (-0.6, 0.06), (-0.98, -0.12))),
        Layer(((-0.36, -0.84), (-0.06, -0.84), (-0.1, -0.16), (-0.34, -0.28)), "shade"),
        Layer(circle(-0.62, -0.46, 0.08), "dark", edge=False),
    ),
    "fish": (Layer(FISH_TAIL), Layer(FISH_BODY), *FISH_EYE),
    "heart": (Layer(heart()),),
    "house": (
        Layer(HOUSE_WALL),
        Layer(((-0.98, -0.14), (0.0, -0.96), (0.98, -0.14)), "shade"),
        *HOUSE_OPENINGS,
    ),
    "mug": (MUG_HANDLE, Layer(MUG_BODY)),
    "star": (Layer(star()),),
    "tree": (
        Layer(box(-0.16, 0.4, 0.16, 0.98), "dark"),
        Layer(((-0.86, 0.5), (0.0, -0.3), (0.86, 0.5))),
        Layer(((-0.64, 0.02), (0.0, -0.98), (0.64, 0.02))),
    ),
}
"""The classes, by the word that names them."""

SPOTS = ((-0.45, -0.4), (0.25, -0.5), (0.0, 0.05), (-0.5, 0.4), (0.45, 0.4))

DECORATIONS: dict[str, tuple[Outline, ...]] = {
    "two-tone": (box(-2, 0.08, 2, 2),),
    "band": (box(-2, -0.16, 2, 0.2),),
    "spots": tuple(circle(x, y, 0.17) for x, y in SPOTS),
    "disc": (circle(-0.12, 0.1, 0.32),),
    "diamond": (((-0.12, -0.3), (0.24, 0.1), (-0.12, 0.5), (-0.48, 0.1)),),
}
"""What some objects wear and no caption names: outlines in a colour of their own, seen on the body alone."""
