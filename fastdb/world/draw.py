"""Painting a scene."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw

from fastdb.world.scene import Colour, Decoration, Pose, Scene
from fastdb.world.shapes import DECORATIONS, FIGURES, Outline

SIDE = 64
"""Of a picture, in pixels."""

FINE = 4
"""Pictures are painted this many times larger, then averaged down."""

TILE = 8
"""Width of a stripe, in pixels: what one latent sees."""

DARK: Colour = (44, 38, 48)
"""Of contours, wheels and doors."""

LIGHT: Colour = (250, 248, 240)
"""Of windows, sails and eyes."""

EDGE = 0.028
"""Width of a contour, as a part of the picture's side."""


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, `SIDE` pixels square."""
    side = SIDE * FINE
    picture = background(scene.background, scene.texture).resize((side, side), Image.Resampling.NEAREST)
    # White where the object's own colour is seen.
    body = Image.new("L", picture.size)
    pen, stencil = ImageDraw.Draw(picture), ImageDraw.Draw(body)
    contours = []
    for layer in scene.figure or FIGURES[scene.shape]:
        points = _placed(layer.outline, scene.pose)
        pen.polygon(points, fill=_fill(layer.fill, scene.colour))
        stencil.polygon(points, fill=255 if layer.fill in ("body", "shade") else 0)
        if layer.edge:
            _contour(pen, points, DARK)
            contours.append(points)
    for points in contours:
        _contour(stencil, points, 0)
    if scene.decoration:
        _decorate(picture, body, scene.decoration, scene.pose)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def background(colour: Colour, texture: str) -> Image.Image:
    """A background without an object, RGB, `SIDE` pixels square; `texture` is one of `scene.TEXTURES`."""
    second = second_tone(colour)
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    pen = ImageDraw.Draw(picture)
    for row in range(SIDE // TILE):
        for column in range(SIDE // TILE):
            left, top = column * TILE, row * TILE
            if (texture == "striped" and column % 2) or (texture == "checkered" and (row + column) % 2):
                pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=second)
            elif texture == "dotted" and row % 2 and column % 2:
                pen.ellipse((left, top, left + TILE - 1, top + TILE - 1), fill=second)
    return picture


def second_tone(colour: Colour) -> Colour:
    """The colour of a background's stripes, squares or dots: darker than it, or lighter where it is dark."""
    return tone(colour, 0.84 if sum(colour) > 330 else 1.5)


def tone(colour: Colour, share: float) -> Colour:
    """A colour with its channels multiplied by `share`: below 1 it becomes darker, above 1 lighter."""
    red, green, blue = (min(255, round(channel * share)) for channel in colour)
    return red, green, blue


def rgb(code: str) -> Colour:
    """The colour that `#rrggbb` says."""
    red, green, blue = (int(code[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def _contour(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Colour | int) -> None:
    # The first corner comes twice, so that it is rounded as the others are.
    pen.line([*points, *points[:2]], fill=colour, width=round(EDGE * SIDE * FINE), joint="curve")


def _decorate(picture: Image.Image, body: Image.Image, decoration: Decoration, pose: Pose) -> None:
    """Paint the decoration where the body is seen."""
    mask = Image.new("L", picture.size)
    stencil = ImageDraw.Draw(mask)
    for outline in DECORATIONS[decoration.name]:
        stencil.polygon(_placed(outline, pose), fill=255)
    picture.paste(decoration.colour, mask=ImageChops.multiply(mask, body))


def _placed(outline: Outline, pose: Pose) -> list[tuple[float, float]]:
    """An outline in pixels of the fine picture."""
    side, cos, sin = SIDE * FINE, math.cos(pose.tilt), math.sin(pose.tilt)
    return [
        ((pose.x + pose.size * (cos * x - sin * y)) * side, (pose.y + pose.size * (sin * x + cos * y)) * side)
        for x, y in outline
    ]


def _fill(fill: str, body: Colour) -> Colour:
    """What a layer is filled with, on an object of this colour."""
    named = {"body": body, "shade": tone(body, 0.72), "dark": DARK, "light": LIGHT}
    return named[fill] if fill in named else rgb(fill)
