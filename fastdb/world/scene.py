"""Scenes of the drawn world with their figures, colours and prompts."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

Colour = tuple[int, int, int]
Point = tuple[float, float]
Outline = tuple[Point, ...]


@dataclass(frozen=True)
class Layer:
    """A painted outline.

    Attributes:
        outline: corners in a square from -1 to 1, y pointing down.
        fill: "body" is the object's colour, "shade" a darker tone of it, "dark" and "light" are fixed colours; anything
            else is a colour `#rrggbb`.
        edge: whether it has a dark contour.
    """

    outline: Outline
    fill: str = "body"
    edge: bool = True


Figure = tuple[Layer, ...]


def _circle(x: float, y: float, radius: float, radius_y: float | None = None, points: int = 40) -> Outline:
    """Return a circle around (x, y), or an ellipse if `radius_y` differs."""
    high = radius if radius_y is None else radius_y
    turns = (2 * math.pi * number / points for number in range(points))
    return tuple((x + radius * math.cos(turn), y + high * math.sin(turn)) for turn in turns)


def _box(left: float, top: float, right: float, bottom: float) -> Outline:
    """Return a rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _ring(x: float, y: float, outer: float, inner: float) -> Outline:
    """Return the right half of a ring, the handle of a mug."""
    turns = [math.pi * (number / 16 - 0.5) for number in range(17)]
    out = [(x + outer * math.cos(turn), y + outer * math.sin(turn)) for turn in turns]
    back = [(x + inner * math.cos(turn), y + inner * math.sin(turn)) for turn in reversed(turns)]
    return tuple(out + back)


def _star(radius: float = 1.0, waist: float = 0.45) -> Outline:
    """Return a star with five tips at distance `radius` from its centre and notches at distance `waist`."""
    points = []
    for number in range(10):
        length, turn = (radius if number % 2 == 0 else waist), math.pi * number / 5 - math.pi / 2
        points.append((length * math.cos(turn), 0.06 + length * math.sin(turn)))
    return tuple(points)


def _heart() -> Outline:
    """Return the heart curve.

    x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t (mathworld.wolfram.com/HeartCurve.html).
    """
    points = []
    for number in range(48):
        t = 2 * math.pi * number / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -y / 15.5 - 0.08))
    return tuple(points)


MUG_BODY = ((-0.8, -0.78), (0.42, -0.78), (0.34, 0.82), (-0.72, 0.82))
FISH_BODY = _circle(-0.22, 0.0, 0.74, 0.56)
FISH_TAIL = ((0.34, 0.0), (0.98, -0.58), (0.84, 0.0), (0.98, 0.58))
HOUSE_WALL = _box(-0.72, -0.14, 0.72, 0.88)
CAR_BODY = ((-0.98, 0.42), (-0.98, -0.02), (-0.62, -0.1), (0.9, -0.06), (0.98, 0.1), (0.98, 0.42))
CAR_CABIN = ((-0.62, -0.1), (-0.36, -0.6), (0.36, -0.6), (0.66, -0.08))

WHEELS = (Layer(_circle(-0.54, 0.46, 0.27), "dark"), Layer(_circle(0.54, 0.46, 0.27), "dark"))
FISH_EYE = (Layer(_circle(-0.58, -0.14, 0.14), "light"), Layer(_circle(-0.6, -0.14, 0.06), "dark", edge=False))
HOUSE_OPENINGS = (Layer(_box(-0.46, 0.3, -0.08, 0.88), "dark"), Layer(_box(0.18, 0.12, 0.54, 0.5), "light"))
MUG_HANDLE = Layer(_ring(0.36, -0.02, 0.58, 0.27))

FIGURES: dict[str, Figure] = {
    "ball": (
        Layer(_circle(0, 0, 0.92)),
        Layer(_circle(-0.3, -0.36, 0.2, 0.15), "light", edge=False),
    ),
    "boat": (
        Layer(_box(-0.06, -0.95, 0.06, 0.3), "dark", edge=False),
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
        Layer(_box(-0.5, 0.3, -0.2, 0.92)),
        Layer(_box(0.4, 0.3, 0.7, 0.92)),
        Layer(((-0.56, -0.1), (0.76, -0.1), (0.76, 0.52), (-0.56, 0.52))),
        Layer(((-0.98, -0.42), (-0.72, -0.74), (-0.2, -0.74), (-0.2, 0.06), (-0.6, 0.06), (-0.98, -0.12))),
        Layer(((-0.36, -0.84), (-0.06, -0.84), (-0.1, -0.16), (-0.34, -0.28)), "shade"),
        Layer(_circle(-0.62, -0.46, 0.08), "dark", edge=False),
    ),
    "fish": (Layer(FISH_TAIL), Layer(FISH_BODY), *FISH_EYE),
    "heart": (Layer(_heart()),),
    "house": (
        Layer(HOUSE_WALL),
        Layer(((-0.98, -0.14), (0.0, -0.96), (0.98, -0.14)), "shade"),
        *HOUSE_OPENINGS,
    ),
    "mug": (MUG_HANDLE, Layer(MUG_BODY)),
    "star": (Layer(_star()),),
    "tree": (
        Layer(_box(-0.16, 0.4, 0.16, 0.98), "dark"),
        Layer(((-0.86, 0.5), (0.0, -0.3), (0.86, 0.5))),
        Layer(((-0.64, 0.02), (0.0, -0.98), (0.64, 0.02))),
    ),
}
"""The figure of each class, by its class word."""

SPOTS = ((-0.45, -0.4), (0.25, -0.5), (0.0, 0.05), (-0.5, 0.4), (0.45, 0.4))

DECORATIONS: dict[str, tuple[Outline, ...]] = {
    "two-tone": (_box(-2, 0.08, 2, 2),),
    "band": (_box(-2, -0.16, 2, 0.2),),
    "spots": tuple(_circle(x, y, 0.17) for x, y in SPOTS),
    "disc": (_circle(-0.12, 0.1, 0.32),),
    "diamond": (((-0.12, -0.3), (0.24, 0.1), (-0.12, 0.5), (-0.48, 0.1)),),
}
"""Decorations of some objects, which no caption mentions. Their outlines are visible only on the object's body."""

SHAPES = tuple(FIGURES)
"""The class words."""

COLOURS: dict[str, Colour] = {
    "red": (208, 40, 44),
    "orange": (240, 132, 28),
    "yellow": (246, 214, 44),
    "green": (44, 148, 68),
    "blue": (44, 84, 204),
    "purple": (126, 52, 168),
    "pink": (244, 112, 176),
    "brown": (124, 76, 44),
}
"""Colours of objects."""

BACKGROUNDS: dict[str, Colour] = {
    "white": (248, 248, 246),
    "grey": (168, 168, 172),
    "red": (244, 164, 160),
    "yellow": (252, 240, 168),
    "green": (164, 220, 160),
    "blue": (156, 200, 248),
    "purple": (204, 176, 240),
    "black": (72, 72, 80),
}
"""Colours of backgrounds, paler than those of objects so that a blue mug is visible on blue."""

TEXTURES = ("plain", "striped", "checkered", "dotted")


@dataclass(frozen=True)
class Pose:
    """Size (half the object's side) and centre as fractions of the picture's side, and tilt in radians."""

    size: float = 0.38
    x: float = 0.5
    y: float = 0.5
    tilt: float = 0.0


@dataclass(frozen=True)
class Decoration:
    """The name and colour of an object's decoration."""

    name: str
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """The content of a picture.

    Attributes:
        shape: class word, an element of `SHAPES`.
        colour_name, background_name: keys of `COLOURS` and `BACKGROUNDS`.
        texture: of the background, an element of `TEXTURES`.
        colour, background: the exact colours painted.
        decoration: not mentioned in captions.
        figure: replaces the figure of the class, for a subject.
    """

    shape: str
    colour_name: str
    background_name: str
    texture: str
    colour: Colour
    background: Colour
    pose: Pose = Pose()
    decoration: Decoration | None = None
    figure: Figure | None = None


@dataclass(frozen=True)
class ParsedPrompt:
    """The attributes that a prompt asks for; None where it leaves the choice."""

    shape: str | None
    colour: str | None
    background: str | None
    texture: str | None


def random_scene(numbers: random.Random, *, any_colour: bool = False) -> Scene:
    """Return a random scene as in the training pictures, decorated with probability 0.3.

    The order of draws is part of mini's recipe: another order would give other training pictures.

    Args:
        numbers: source of all random numbers.
        any_colour: paint half of the objects and decorations in a random colour instead of the named colour.
    """
    colour_name, background_name = numbers.choice(list(COLOURS)), numbers.choice(list(BACKGROUNDS))
    colour = _jitter(COLOURS[colour_name], numbers, 10)
    if any_colour and numbers.random() < 0.5:
        colour = (numbers.randrange(256), numbers.randrange(256), numbers.randrange(256))
    return Scene(
        shape=numbers.choice(SHAPES),
        colour_name=colour_name,
        background_name=background_name,
        texture=numbers.choice(TEXTURES),
        colour=colour,
        background=_jitter(BACKGROUNDS[background_name], numbers, 6),
        pose=random_pose(numbers),
        decoration=_decoration(numbers, colour_name, any_colour) if numbers.random() < 0.3 else None,
    )


def random_pose(numbers: random.Random) -> Pose:
    """Return a random pose as in the training pictures."""
    return Pose(
        size=numbers.uniform(0.33, 0.42),
        x=0.5 + numbers.uniform(-0.06, 0.06),
        y=0.5 + numbers.uniform(-0.06, 0.06),
        tilt=numbers.uniform(-0.16, 0.16),
    )


def _jitter(colour: Colour, numbers: random.Random, spread: int) -> Colour:
    """Return a colour that differs by at most `spread` (of 255) in each channel."""
    red, green, blue = (min(255, max(0, channel + numbers.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def _decoration(numbers: random.Random, colour_name: str, any_colour: bool) -> Decoration:
    """Return a random decoration in a colour other than the object's."""
    others = [name for name in COLOURS if name != colour_name]
    colour = _jitter(COLOURS[numbers.choice(others)], numbers, 10)
    if any_colour and numbers.random() < 0.5:
        colour = (numbers.randrange(256), numbers.randrange(256), numbers.randrange(256))
    elif numbers.random() < 0.25:
        colour = _jitter((250, 248, 240), numbers, 5)
    return Decoration(numbers.choice(list(DECORATIONS)), colour)


def prompt(shape: str, colour: str | None = None, background: str | None = None, texture: str | None = None) -> str:
    """Return a prompt such as `a photo of a red mug on a striped blue background`; the article is always `a`.

    Args:
        shape: a class word or its replacement, such as `sks mug`.
        texture: ignored without a background.
    """
    text = f"a photo of a {colour} {shape}" if colour else f"a photo of a {shape}"
    if background:
        text += f" on a {texture} {background} background" if texture else f" on a {background} background"
    return text


_PLACE = re.compile(rf"\bon an? (?:(?P<texture>{'|'.join(TEXTURES)}) )?(?P<background>\w+) background\b")
"""The part of a prompt that describes the background."""


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Return the attributes that a prompt asks for, the inverse of `prompt`.

    Class and colour are the first such words before the description of the background, or in the whole prompt without
    it. Upper case, punctuation and unknown colours of backgrounds are ignored.
    """
    text = prompt.lower()
    place = _PLACE.search(text)
    words = re.findall(r"\w+", text[: place.start()] if place else text)
    background = place["background"] if place else None
    return ParsedPrompt(
        shape=next((word for word in words if word in FIGURES), None),
        colour=next((word for word in words if word in COLOURS), None),
        background=background if background in BACKGROUNDS else None,
        texture=place["texture"] if place else None,
    )
