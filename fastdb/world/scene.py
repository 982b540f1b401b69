"""A scene of the drawn world: what there is to see, and the captions that say so."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from fastdb.world.shapes import DECORATIONS, FIGURES, Figure

Colour = tuple[int, int, int]

SHAPES = tuple(FIGURES)
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
"""Colours of backgrounds: paler ones, so that a blue mug is seen on blue."""

TEXTURES = ("plain", "striped", "checkered", "dotted")


@dataclass(frozen=True)
class Pose:
    """Size (half the object's side), centre and tilt: parts of the picture's side, and radians."""

    size: float = 0.38
    x: float = 0.5
    y: float = 0.5
    tilt: float = 0.0


@dataclass(frozen=True)
class Decoration:
    """What an object wears."""

    name: str
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows.

    Attributes:
        shape: class word, one of `SHAPES`.
        colour_name, background_name: what its colours are called: keys of `COLOURS` and `BACKGROUNDS`.
        texture: of the background, one of `TEXTURES`.
        colour, background: those colours exactly as painted.
        pose: where the object is.
        decoration: what it wears; no caption says so.
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
class Asked:
    """What a prompt asks for; None where it leaves the choice."""

    shape: str | None
    colour: str | None
    background: str | None
    texture: str | None


def random_scene(numbers: random.Random, *, any_colour: bool = False) -> Scene:
    """Draw the lots for a scene such as training pictures show, decorated three times in ten.

    Args:
        numbers: where all of its lots come from, always in the same order.
        any_colour: paint half of the objects and of the decorations in any colour at all, whatever it is called.
    """
    colour_name, background_name = numbers.choice(list(COLOURS)), numbers.choice(list(BACKGROUNDS))
    colour = near(COLOURS[colour_name], numbers, 10)
    if any_colour and numbers.random() < 0.5:
        colour = (numbers.randrange(256), numbers.randrange(256), numbers.randrange(256))
    return Scene(
        shape=numbers.choice(SHAPES),
        colour_name=colour_name,
        background_name=background_name,
        texture=numbers.choice(TEXTURES),
        colour=colour,
        background=near(BACKGROUNDS[background_name], numbers, 6),
        pose=random_pose(numbers),
        decoration=_decoration(numbers, colour_name, any_colour) if numbers.random() < 0.3 else None,
    )


def random_pose(numbers: random.Random) -> Pose:
    """The lots for a size, a place and a tilt such as training pictures have."""
    return Pose(
        size=numbers.uniform(0.33, 0.42),
        x=0.5 + numbers.uniform(-0.06, 0.06),
        y=0.5 + numbers.uniform(-0.06, 0.06),
        tilt=numbers.uniform(-0.16, 0.16),
    )


def near(colour: Colour, numbers: random.Random, spread: int) -> Colour:
    """The lots for a colour that differs from this one by up to `spread` a channel, of 255."""
    red, green, blue = (min(255, max(0, channel + numbers.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def _decoration(numbers: random.Random, colour_name: str, any_colour: bool) -> Decoration:
    others = [name for name in COLOURS if name != colour_name]
    colour = near(COLOURS[numbers.choice(others)], numbers, 10)
    if any_colour and numbers.random() < 0.5:
        colour = (numbers.randrange(256), numbers.randrange(256), numbers.randrange(256))
    elif numbers.random() < 0.25:
        colour = near((250, 248, 240), numbers, 5)
    return Decoration(numbers.choice(list(DECORATIONS)), colour)


def prompt(shape: str, colour: str | None = None, background: str | None = None, texture: str | None = None) -> str:
    """`a photo of a red mug on a striped blue background`, or less of it; the article is `a` for oranges too.

    Args:
        shape: a class, or anything else that stands in its place, as `sks mug`.
        texture: said only where the background is.
    """
    said = f"a photo of a {colour} {shape}" if colour else f"a photo of a {shape}"
    if background:
        said += f" on a {texture} {background} background" if texture else f" on a {background} background"
    return said


PLACE = re.compile(rf"\bon an? (?:(?P<texture>{'|'.join(TEXTURES)}) )?(?P<background>\w+) background\b")
"""How a prompt says what lies behind."""


def described(text: str) -> Asked:
    """What a prompt asks for in this world: the inverse of `prompt`.

    Class and colour are the first words for them before the background is spoken of, or in all of a prompt that does
    not speak of it; upper case and punctuation are passed over, as are backgrounds in colours this world does not have.
    """
    said = text.lower()
    place = PLACE.search(said)
    words = re.findall(r"\w+", said[: place.start()] if place else said)
    background = place["background"] if place else None
    return Asked(
        shape=next((word for word in words if word in FIGURES), None),
        colour=next((word for word in words if word in COLOURS), None),
        background=background if background in BACKGROUNDS else None,
        texture=place["texture"] if place else None,
    )
