"""Pictures of scenes."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw

from fastdb.world.scene import DECORATIONS, FIGURES, Colour, Decoration, Outline, Pose, Scene

SIDE = 64
"""Side of a picture in pixels."""

OVERSAMPLING = 4
"""Pictures are painted this many times larger, then averaged down."""

TILE = 8
"""Width of a stripe in pixels, the area of one latent."""

DARK: Colour = (44, 38, 48)
"""Colour of contours, wheels and doors."""

LIGHT: Colour = (250, 248, 240)
"""Colour of windows, sails and eyes."""

EDGE = 0.028
"""Width of a contour as a fraction of the picture's side."""


def draw(scene: Scene) -> Image.Image:
    """Draw a scene, RGB, `SIDE` x `SIDE` pixels."""
    side = SIDE * OVERSAMPLING
    picture = background(scene.background, scene.texture).resize((side, side), Image.Resampling.NEAREST)
    # A mask, white where the object's own colour is visible.
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
    """Draw a background without an object, RGB, `SIDE` x `SIDE` pixels; `texture` is an element of `TEXTURES`."""
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
    """Return the colour of a background's stripes, squares or dots, darker than a light background and vice versa."""
    return _tone(colour, 0.84 if sum(colour) > 330 else 1.5)


def _tone(colour: Colour, share: float) -> Colour:
    """Return a colour with its channels multiplied by `share`, at most 255."""
    red, green, blue = (min(255, round(channel * share)) for channel in colour)
    return red, green, blue


def rgb(code: str) -> Colour:
    """Return the colour of a code `#rrggbb`."""
    red, green, blue = (int(code[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def _contour(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Colour | int) -> None:
    # The first corner is repeated so that it is rounded like the others.
    pen.line([*points, *points[:2]], fill=colour, width=round(EDGE * SIDE * OVERSAMPLING), joint="curve")


def _decorate(picture: Image.Image, body: Image.Image, decoration: Decoration, pose: Pose) -> None:
    """Paint the decoration where the body is visible."""
    mask = Image.new("L", picture.size)
    stencil = ImageDraw.Draw(mask)
    for outline in DECORATIONS[decoration.name]:
        stencil.polygon(_placed(outline, pose), fill=255)
    picture.paste(decoration.colour, mask=ImageChops.multiply(mask, body))


def _placed(outline: Outline, pose: Pose) -> list[tuple[float, float]]:
    """Return an outline in pixels of the oversampled picture."""
    side, cos, sin = SIDE * OVERSAMPLING, math.cos(pose.tilt), math.sin(pose.tilt)
    return [
        ((pose.x + pose.size * (cos * x - sin * y)) * side, (pose.y + pose.size * (sin * x + cos * y)) * side)
        for x, y in outline
    ]


def _fill(fill: str, body: Colour) -> Colour:
    """Return the fill colour of a layer of an object with this colour."""
    named = {"body": body, "shade": _tone(body, 0.72), "dark": DARK, "light": LIGHT}
    return named[fill] if fill in named else rgb(fill)
