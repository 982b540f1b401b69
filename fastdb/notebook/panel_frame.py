"""The still picture of the training panel and its strip of samples."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fastdb.notebook.panel_state import PanelState

_WIDTH, _MARGIN, _THUMB, _GAP = 720, 20, 160, 8
_BAR, _CHART = 14, 120
_PAPER, _INK, _GREY, _RULE = "#ffffff", "#1c1c1e", "#6b6b70", "#e4e4e8"
LINES = ("#2c54cc", "#c2410c")
"""Colours of the stages' curves, as in panel.css."""
_BARS = {"running": "#2c54cc", "done": "#1a7f37", "failed": "#c62828"}
_NOTES = 4


def strip(paths: Sequence[Path]) -> bytes:
    """Return the samples side by side as a JPEG; one that cannot be read is left out.

    Returns:
        Empty if none can be read.
    """
    thumbs = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                thumb = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError):
            # Drive was disconnected, or the file was deleted or damaged; PIL raises all of these.
            continue
        resample = Image.Resampling.NEAREST if thumb.width < _THUMB else Image.Resampling.LANCZOS
        thumbs.append(thumb.resize((_THUMB, round(_THUMB * thumb.height / thumb.width)), resample))
    if not thumbs:
        return b""
    wide = len(thumbs) * (_THUMB + _GAP) - _GAP
    sheet = Image.new("RGB", (wide, max(thumb.height for thumb in thumbs)), _PAPER)
    for number, thumb in enumerate(thumbs):
        sheet.paste(thumb, (number * (_THUMB + _GAP), 0))
    return _encoded(sheet, "JPEG", quality=85)


def frame(state: PanelState, samples: bytes) -> bytes:
    """Return the panel as a PNG."""
    sheet = Image.new("RGB", (_WIDTH, 1400), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _text(pen, _MARGIN, f"fast DreamBooth: {state.name}", 13, _GREY)
    top = _text(pen, top + 4, state.headline(), 20, _INK)
    for bar in state.bars():
        top = _bar(pen, top + 8, bar, _BARS[state.tone()])
    if state.status.numbers() and not state.status.task:
        top = _text(pen, top + 8, ", ".join(state.status.numbers()), 14, _INK)
    if state.curves():
        top = _chart(pen, top + 12, state.curves())
    if samples:
        with Image.open(io.BytesIO(samples)) as picture:
            picture.thumbnail((_WIDTH - 2 * _MARGIN, 400))
            sheet.paste(picture, (_MARGIN, top + 10))
            top += 10 + picture.height
        top = _text(pen, top + 4, state.caption(), 13, _GREY)
    rows = [f"{label}: {text}" for label, text in state.lines()]
    for row in [*rows, *([state.error] if state.error else [])]:
        top = _text(pen, top + 6, row, 14, _INK)
    for note in state.notes[-_NOTES:]:
        top = _text(pen, top + 4, note, 12, _GREY)
    top = _text(pen, top + 10, f"In a terminal: {state.command}", 12, _GREY)
    cut = sheet.crop((0, 0, _WIDTH, min(top + _MARGIN, sheet.height)))
    # A palette takes a third of the bytes, and the output of the notebook contains the last picture.
    return _encoded(cut.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE), "PNG")


def _bar(pen: ImageDraw.ImageDraw, top: int, bar: dict[str, Any], ink: str) -> int:
    top = _text(pen, top, bar["label"], 13, _GREY) + 3
    right = _WIDTH - _MARGIN
    pen.rectangle((_MARGIN, top, right, top + _BAR), fill=_RULE)
    if bar["fraction"]:
        pen.rectangle((_MARGIN, top, _MARGIN + round((right - _MARGIN) * bar["fraction"]), top + _BAR), fill=ink)
    return top + _BAR


def _chart(pen: ImageDraw.ImageDraw, top: int, curves: dict[str, Any]) -> int:
    left, right, bottom = _MARGIN + 56, _WIDTH - _MARGIN, top + _CHART
    pen.line((left, bottom, right, bottom), fill=_RULE)
    pen.text((left - 6, top), curves["high"], fill=_GREY, font=_font(12), anchor="rt")
    pen.text((left - 6, bottom), curves["low"], fill=_GREY, font=_font(12), anchor="rb")
    for number, line in enumerate(curves["lines"]):
        points = [(left + x * (right - left), bottom - y * _CHART) for x, y in line["points"]]
        if len(points) > 1:
            pen.line(points, fill=LINES[number % len(LINES)], width=2)
    pen.text((left, bottom + 4), "loss, smoothed", fill=_GREY, font=_font(12))
    pen.text((right, bottom + 4), curves["steps"], fill=_GREY, font=_font(12), anchor="ra")
    return bottom + 20


def _text(pen: ImageDraw.ImageDraw, top: int, text: str, size: int, ink: str) -> int:
    """Write a text in at most two lines and return where it ends."""
    wide = round((_WIDTH - 2 * _MARGIN) / (size * 0.52))
    shown = textwrap.wrap(text, wide, max_lines=2, placeholder="…")
    for line in shown:
        pen.text((_MARGIN, top), line, fill=ink, font=_font(size))
        top += round(size * 1.35)
    return top


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
