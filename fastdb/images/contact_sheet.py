"""Contact sheets of captioned images in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from fastdb.images.crop import crop_square
from fastdb.images.intake import Added
from fastdb.images.photos import read_photo

_PAPER, _INK, _GREY, _RULE, _BOX = "#ffffff", "#1c1c1e", "#6b6b70", "#e4e4e8", "#ff3b30"
_GAP, _MARGIN = 14, 28
_MOST_LINES = 4

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """An image with its caption and a box to outline.

    The box is left, top, right and bottom in pixels of the image.
    """

    image: Image.Image
    caption: str = ""
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Row:
    """A row of cells with a label and a remark."""

    label: str
    cells: Sequence[Cell] = field(default_factory=tuple)
    about: str = ""


def contact_sheet(rows: Sequence[Row], title: str = "", thumb: int = 192, note: str = "") -> Image.Image:
    """Draw rows of images, each fitted into `thumb` x `thumb` pixels.

    Labels are in a column on the left, captions below their images, the note in small type below the title. All texts
    are wrapped and cut after a few lines with an ellipsis.
    """
    base = min(max(thumb / 13, 12), 22)  # legible for small and large thumbs
    fonts = _Fonts(*(ImageFont.load_default(size=round(base * scale)) for scale in (1.7, 1.15, 1.0)))
    label_width = round(thumb * 0.9) if any(row.label or row.about for row in rows) else 0
    first = _MARGIN + (label_width + _GAP if label_width else 0)
    columns = max((len(row.cells) for row in rows), default=0)
    width = max(first + columns * (thumb + _GAP) - _GAP + _MARGIN, thumb + 2 * _MARGIN)
    laid = [_lay_out(row, fonts, thumb, label_width) for row in rows]
    titles = _wrapped(title, fonts.title, width - 2 * _MARGIN)
    notes = _wrapped(note, fonts.caption, width - 2 * _MARGIN)
    noted = _MARGIN + (len(titles) * _line_height(fonts.title) + 6 if titles else 0)
    under = noted + len(notes) * _line_height(fonts.caption)
    top = under + _GAP if titles or notes else _MARGIN
    height = top + sum(row.height for row in laid) + 2 * _GAP * max(len(laid) - 1, 0) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, _MARGIN, _MARGIN, titles, fonts.title, _INK)
    _write(pen, _MARGIN, noted, notes, fonts.caption, _GREY)
    for number, row in enumerate(laid):
        if number:
            pen.line((_MARGIN, top - _GAP, width - _MARGIN, top - _GAP), fill=_RULE)
        _write(pen, _MARGIN, top, row.label, fonts.label, _INK)
        _write(pen, _MARGIN, top + row.labelled, row.about, fonts.caption, _GREY)
        for column, (cell, caption) in enumerate(zip(row.cells, row.captions, strict=True)):
            left = first + column * (thumb + _GAP)
            _paste(sheet, pen, cell, (left, top), thumb, row.pictures)
            _write(pen, left, top + row.pictures + 6, caption, fonts.caption, _GREY)
        top += row.height + 2 * _GAP
    return sheet


def arrowed(first: Image.Image, then: Image.Image, side: int = 320) -> Image.Image:
    """Join two square images with an arrow between them.

    Both are scaled to `side` x `side` pixels.
    """
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
    """Stack images vertically on white."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), _PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def review_sheet(name: str, added: Sequence[Added]) -> Image.Image:
    """Draw photos with their crops outlined, above the crops.

    Raises:
        ImageError: a photo was removed or changed after its import.
    """
    photos, crops = [], []
    for entry in added:
        photo = read_photo(entry.source)
        photos.append(Cell(photo, entry.name, entry.crop.box))
        crops.append(Cell(crop_square(photo, entry.crop, 512), entry.crop.reason))
    return contact_sheet([Row("photo and crop", photos), Row("used for training", crops)], title=name)


@dataclass(frozen=True)
class _Fonts:
    title: Font
    label: Font
    caption: Font


@dataclass(frozen=True)
class _Laid:
    label: list[str]
    labelled: int
    about: list[str]
    captions: list[list[str]]
    cells: Sequence[Cell]
    pictures: int
    height: int


def _lay_out(row: Row, fonts: _Fonts, thumb: int, label_width: int) -> _Laid:
    """Wrap a row's texts and compute its height."""
    label = _wrapped(row.label, fonts.label, label_width, most=3 * _MOST_LINES)
    labelled = len(label) * _line_height(fonts.label)
    about = _wrapped(row.about, fonts.caption, label_width, most=2 * _MOST_LINES)
    captions = [_wrapped(cell.caption, fonts.caption, thumb) for cell in row.cells]
    lines = max((len(caption) for caption in captions), default=0)
    under = 6 + lines * _line_height(fonts.caption) if lines else 0
    pictures = max((_fitted(cell.image, thumb)[1] for cell in row.cells), default=0)
    height = max(pictures + under, labelled + len(about) * _line_height(fonts.caption))
    return _Laid(label, labelled, about, captions, row.cells, pictures, height)


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ågp|")
    return round((bottom - top) * 1.2)


def _wrapped(text: str, font: Font, width: int, most: int = _MOST_LINES) -> list[str]:
    """Wrap text to at most `most` lines of `width` pixels.

    Text that is cut ends in an ellipsis.
    """
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


def _write(pen: ImageDraw.ImageDraw, left: int, top: int, lines: list[str], font: Font, ink: str) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * _line_height(font)), line, fill=ink, font=font)


def _fitted(image: Image.Image, thumb: int) -> tuple[int, int]:
    """Return the size of an image scaled to `thumb` pixels."""
    width, height = image.size
    scale = thumb / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _paste(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], thumb: int, tall: int
) -> None:
    """Draw a cell's image and box, centred in `thumb` x `tall` pixels."""
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
