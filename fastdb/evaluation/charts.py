"""Charts of an evaluation, a grid of pictures and curves of figures over steps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from fastdb.evaluation.prompts import Protocol
from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.photos import read_photo
from fastdb.measures.shots import Shot
from fastdb.measures.values import Value

if TYPE_CHECKING:
    from fastdb.evaluation.candidates import PictureCache
    from fastdb.evaluation.report import Evaluation

_GRID_COLUMNS = 8
_PAPER, _INK, _GREY, _RULE = "#ffffff", "#1c1c1e", "#6b6b70", "#e4e4e8"
_LINE, _BAND, _LIMIT, _PICKED = "#2c54cc", "#2c54cc33", "#ff3b30", "#dff3e4"
_WIDE, _HIGH, _COLUMNS, _MARGIN = 400, 264, 3, 28
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 74, 18, 30
"""Size of a panel in pixels, and its margins around the axes."""


@dataclass(frozen=True)
class Curve:
    """A figure at the steps that have it; `limit` is drawn as a dashed line."""

    name: str
    about: str
    points: Sequence[tuple[int, Value]]
    limit: float | None = None


def draw_grid(cache: PictureCache, evaluation: Evaluation, instance_images: Sequence[Path], title: str) -> Image.Image:
    """Draw the instance images and a row of pictures for each candidate, the picked row marked, RGB."""
    shots = _grid_shots(evaluation.protocol)
    rows = [Row("instance images", [Cell(read_photo(path)) for path in instance_images[:_GRID_COLUMNS]])]
    for number, candidate in enumerate(evaluation.candidates):
        label = candidate.label + "\nuntrained" * (number == 0)
        label += "\nuse this checkpoint" * (number == evaluation.picked.row)
        captions = [f"{shot.group}:\n{shot.prompt}" * (number == 0) for shot in shots]
        taken = cache.load(candidate, shots)
        rows.append(Row(label, [Cell(item.picture, text) for item, text in zip(taken, captions, strict=True)]))
    return contact_sheet(rows, title=title, thumb=160)


def _grid_shots(protocol: Protocol, most: int = _GRID_COLUMNS) -> list[Shot]:
    """Return the shots of the grid by group and prompt, taken from the groups in turn, then from further pictures."""
    by_prompt: dict[tuple[str, str], list[Shot]] = {}
    for shot in protocol.shots():
        by_prompt.setdefault((shot.group, shot.prompt), []).append(shot)
    turns: list[Shot] = []
    for number in range(max(map(len, by_prompt.values()))):
        groups = [
            [by_prompt[group.name, prompt][number : number + 1] for prompt in group.prompts]
            for group in protocol.groups
        ]
        turns += [shot for turn in zip_longest(*groups, fillvalue=()) for shots in turn for shot in shots]
    places = list(by_prompt)
    return sorted(turns[:most], key=lambda shot: places.index((shot.group, shot.prompt)))


def curves_of(evaluation: Evaluation) -> list[Curve]:
    """Return a curve for each figure measured at two steps or more."""
    start, curves = evaluation.measured[0].values, []
    for figure in evaluation.figures:
        points = [
            (candidate.step, measured.values[figure.name])
            for candidate, measured in zip(evaluation.candidates, evaluation.measured, strict=True)
            if candidate.step is not None and figure.name in measured.values
        ]
        if len({step for step, _ in points}) > 1:
            counts = sorted({value.count for _, value in points})
            pictures = f"n {counts[0]}" if len(counts) == 1 else f"n {counts[0]} to {counts[-1]}"
            about = f"{figure.about}; {figure.better} is better; {pictures}"
            curves.append(Curve(figure.name, about, points, figure.bound(start)))
    return curves


def draw_curves(curves: Sequence[Curve], title: str, picked: int | None) -> Image.Image:
    """Draw a panel for each curve with a band of its intervals and the picked step in green, RGB."""
    columns = min(_COLUMNS, max(len(curves), 1))
    rows = math.ceil(len(curves) / columns)
    width, height = 2 * _MARGIN + columns * _WIDE, 2 * _MARGIN + 44 + rows * _HIGH
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet, "RGBA")  # so that the bands are translucent
    pen.text((_MARGIN, _MARGIN), textwrap.shorten(title, width // 10), fill=_INK, font=_font(22))
    for number, curve in enumerate(curves):
        left, top = _MARGIN + number % columns * _WIDE, _MARGIN + 44 + number // columns * _HIGH
        _Panel(pen, curve, left, top).draw(picked)
    return sheet


class _Panel:
    """A chart with its corner at (left, top) of the sheet."""

    def __init__(self, pen: ImageDraw.ImageDraw, curve: Curve, left: int, top: int) -> None:
        self._pen, self._curve, self._left, self._top = pen, curve, left, top
        self._frame = (left + _LEFT, top + _TOP, left + _WIDE - _RIGHT, top + _HIGH - _BOTTOM)
        steps = [step for step, _ in curve.points]
        self._steps = (min(steps), max(max(steps), min(steps) + 1))
        edges = [bound for _, value in curve.points for bound in _bounds(value)]
        self._low, self._high = _round_range(edges + ([] if curve.limit is None else [curve.limit]))

    def draw(self, picked: int | None) -> None:
        """Draw texts, axes, limit and curve."""
        left, top, right, bottom = self._frame
        self._pen.text((self._left, self._top), self._curve.name, fill=_INK, font=_font(16))
        for number, line in enumerate(textwrap.wrap(self._curve.about, 62)[:2]):
            self._pen.text((self._left, self._top + 23 + number * 17), line, fill=_GREY, font=_font(12))
        if picked is not None:
            at = self._x(picked)
            self._pen.rectangle((at - 9, top, at + 9, bottom), fill=_PICKED)
        for mark in (self._low, (self._low + self._high) / 2, self._high):
            self._pen.line((left, self._y(mark), right, self._y(mark)), fill=_RULE)
            self._pen.text((left - 6, self._y(mark)), f"{mark:g}", fill=_GREY, font=_font(12), anchor="rm")
        self._label_steps()
        ordered = sorted(self._curve.points, key=lambda point: point[0])
        lower = [(self._x(step), self._y(_bounds(value)[0])) for step, value in ordered]
        upper = [(self._x(step), self._y(_bounds(value)[1])) for step, value in ordered]
        self._pen.polygon([*lower, *upper[::-1]], fill=_BAND)
        if self._curve.limit is not None:
            at = self._y(self._curve.limit)
            for dash in range(left, right, 10):
                self._pen.line((dash, at, min(dash + 5, right), at), fill=_LIMIT)
        dots = [(self._x(step), self._y(value.mean)) for step, value in ordered]
        self._pen.line(dots, fill=_LINE, width=2)
        for x, y in dots:
            self._pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_LINE)

    def _label_steps(self) -> None:
        """Write as many steps below the axis as fit."""
        free = -math.inf
        for step, _ in self._curve.points:
            half = _font(12).getlength(str(step)) / 2
            if self._x(step) - half > free + 6:
                self._pen.text((self._x(step), self._frame[3] + 6), str(step), fill=_GREY, font=_font(12), anchor="ma")
                free = self._x(step) + half

    def _x(self, step: int) -> float:
        first, last = self._steps
        return self._frame[0] + 12 + (step - first) / (last - first) * (self._frame[2] - self._frame[0] - 24)

    def _y(self, value: float) -> float:
        return self._frame[3] - (value - self._low) / (self._high - self._low) * (self._frame[3] - self._frame[1])


def _bounds(value: Value) -> tuple[float, float]:
    """Return the bounds of a value's interval, or its mean twice."""
    if value.low is None or value.high is None:
        return value.mean, value.mean
    return value.low, value.high


def _round_range(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds around the values that are multiples of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    wide = max(high - low, 1e-3)
    power = 10.0 ** math.ceil(math.log10(wide))
    step = next(size for size in (power * part for part in (0.02, 0.05, 0.1, 0.2)) if wide / size <= 6)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return round(low, 10), round(max(high, low + step), 10)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
