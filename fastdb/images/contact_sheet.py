"""Contact sheets: pictures in rows with a caption under each, for reviewing crops and showing results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fastdb.images.intake import save_png

_PAPER, _INK, _GREY, _RULE, _BOX = "#ffffff", "#1c1c1e", "#6b6b70", "#e4e4e8", "#ff3b30"
_GAP, _MARGIN = 14, 28
_MOST_LINES = 4

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """A picture, a caption for under it, and a box to outline (left, top, right, bottom in its pixels)."""

    image: Image.Image
    caption: str = ""
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Row:
    """A label for the left, the cells beside it, and a remark for under the label."""

    label: str
    cells: Sequence[Cell] = field(default_factory=tuple)
    about: str = ""


def contact_sheet(rows: Sequence[Row], title: str = "", thumb: int = 192, note: str = "") -> Image.Image:
    """Rows of pictures on white, each fitted into `thumb` x `thumb` pixels, as one RGB picture.

    Labels stand in a column on the left, captions under their pictures, the note small under the title; all are
    wrapped and cut after a few lines with an ellipsis.
    """
    fonts = _Fonts.for_thumb(thumb)
    label_width = round(thumb * 0.9) if any(row.label or row.about for row in rows) else 0
    first = _MARGIN + (label_width + _GAP if label_width else 0)
    columns = max((len(row.cells) for row in rows), default=0)
    width = max(first + columns * (thumb + _GAP) - _GAP + _MARGIN, thumb + 2 * _MARGIN)
    laid = [_Laid.out(row, fonts, thumb, label_width) for row in rows]
    titles = _wrapped(title, fonts.title, width - 2 * _MARGIN)
    notes = _wrapped(note, fonts.caption, width - 2 * _MARGIN)
    noted = _MARGIN + (len(titles) * fonts.line(fonts.title) + 6 if titles else 0)
    under = noted + len(notes) * fonts.line(fonts.caption)
    top = under + _GAP if titles or notes else _MARGIN
    height = top + sum(row.height for row in laid) + 2 * _GAP * max(len(laid) - 1, 0) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, _MARGIN, _MARGIN, titles, fonts.title, _INK, fonts)
    _write(pen, _MARGIN, noted, notes, fonts.caption, _GREY, fonts)
    for number, row in enumerate(laid):
        if number:
            pen.line((_MARGIN, top - _GAP, width - _MARGIN, top - _GAP), fill=_RULE)
        _write(pen, _MARGIN, top, row.label, fonts.label, _INK, fonts)
        _write(pen, _MARGIN, top + row.labelled, row.about, fonts.caption, _GREY, fonts)
        for column, (cell, caption) in enumerate(zip(row.cells, row.captions, strict=True)):
            left = first + column * (thumb + _GAP)
            _paste(sheet, pen, cell, (left, top), thumb, row.pictures)
            _write(pen, left, top + row.pictures + 6, caption, fonts.caption, _GREY, fonts)
        top += row.height + 2 * _GAP
    return sheet


def arrowed(first: Image.Image, then: Image.Image, side: int = 320) -> Image.Image:
    """Two square pictures as one, each `side` x `side` pixels, with an arrow from the first to the second between."""
    gap = side // 4
    both = Image.new("RGB", (2 * side + gap, side), _PAPER)
    for image, left in ((first, 0), (then, side + gap)):
        both.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, 0))
    point, middle = side + gap * 4 // 5, side // 2
    pen = ImageDraw.Draw(both)
    pen.line((side + gap // 5, middle, point - gap // 4, middle), fill=_GREY, width=gap // 10)
    pen.polygon([(point, middle)] + [(point - gap // 4, middle + way * gap // 5) for way in (-1, 1)], fill=_GREY)
    return both


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below one another on white, as one RGB picture."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), _PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def save_sheet(image: Image.Image, path: Path) -> None:
    """Replace `path` by the sheet as PNG, whole or not at all.

    Raises:
        StorageError: see `durable.writing`.
    """
    save_png(image, path)


@dataclass(frozen=True)
class _Fonts:
    title: Font
    label: Font
    caption: Font

    @classmethod
    def for_thumb(cls, thumb: int) -> _Fonts:
        """Sizes that stay legible from small thumbs to large ones."""
        base = min(max(thumb / 13, 12), 22)
        return cls(*(ImageFont.load_default(size=round(base * scale)) for scale in (1.7, 1.15, 1.0)))

    @staticmethod
    def line(font: Font) -> int:
        """Pixels from one line of text to the next."""
        _, top, _, bottom = font.getbbox("Ågp|")
        return round((bottom - top) * 1.2)


@dataclass(frozen=True)
class _Laid:
    label: list[str]
    labelled: int
    about: list[str]
    captions: list[list[str]]
    cells: Sequence[Cell]
    pictures: int
    height: int

    @classmethod
    def out(cls, row: Row, fonts: _Fonts, thumb: int, label_width: int) -> _Laid:
        """Wrap a row's texts and find its height."""
        label = _wrapped(row.label, fonts.label, label_width, most=3 * _MOST_LINES)
        labelled = len(label) * fonts.line(fonts.label)
        about = _wrapped(row.about, fonts.caption, label_width, most=2 * _MOST_LINES)
        captions = [_wrapped(cell.caption, fonts.caption, thumb) for cell in row.cells]
        lines = max((len(caption) for caption in captions), default=0)
        under = 6 + lines * fonts.line(fonts.caption) if lines else 0
        pictures = max((_fitted(cell.image, thumb)[1] for cell in row.cells), default=0)
        height = max(pictures + under, labelled + len(about) * fonts.line(fonts.caption))
        return cls(label, labelled, about, captions, row.cells, pictures, height)


def _wrapped(text: str, font: Font, width: int, most: int = _MOST_LINES) -> list[str]:
    """Lines of `text` no wider than `width` pixels, at most `most`, the last with an ellipsis if more is left."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        if line:
            lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip()}…"]
    return lines


def _write(
    pen: ImageDraw.ImageDraw, left: int, top: int, lines: list[str], font: Font, ink: str, fonts: _Fonts
) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * fonts.line(font)), line, fill=ink, font=font)


def _fitted(image: Image.Image, thumb: int) -> tuple[int, int]:
    """Width and height of the picture once its longer side is `thumb` pixels."""
    width, height = image.size
    scale = thumb / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _paste(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], thumb: int, tall: int
) -> None:
    """Fit the cell's picture into `thumb` x `tall` pixels at `corner`, centred, with its box outlined."""
    width, height = _fitted(cell.image, thumb)
    x, y = corner[0] + (thumb - width) // 2, corner[1] + (tall - height) // 2
    sheet.paste(cell.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, y))
    pen.rectangle((x - 1, y - 1, x + width, y + height), outline=_RULE)
    if cell.box is None:
        return
    scale = width / cell.image.width
    left, top, right, bottom = (round(edge * scale) for edge in cell.box)
    left, top, right, bottom = x + max(left, 0), y + max(top, 0), x + min(right, width) - 1, y + min(bottom, height) - 1
    if right > left + 2 and bottom > top + 2:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_PAPER, width=4)
        pen.rectangle((left, top, right, bottom), outline=_BOX, width=2)
