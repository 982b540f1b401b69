"""Contact sheets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdb.images.contact_sheet import Cell, Row, arrowed, contact_sheet
from fastdb.images.photos import save_png

Gallery = Callable[[str], Image.Image]


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Pixels in the box that are not white."""
    return int((np.asarray(sheet.crop(box)).min(axis=2) < 250).sum())


def test_images_labels_captions_and_boxes_are_drawn(gallery: Gallery) -> None:
    red = Image.new("RGB", (300, 300), (200, 0, 0))
    blue = Image.new("RGB", (300, 150), (0, 0, 200))
    plain = contact_sheet([Row("", [Cell(red), Cell(blue)])], thumb=100)
    colours = np.asarray(plain).reshape(-1, 3).tolist()
    assert colours.count([200, 0, 0]) == 100 * 100
    assert colours.count([0, 0, 200]) == 100 * 50
    full = contact_sheet([Row("a label", [Cell(red, "a caption", (100, 100, 200, 200)), Cell(blue)])], "Title", 100)
    assert full.width > plain.width
    assert full.height > plain.height
    assert ink(full, (0, 0, full.width, 50)) > 50  # the title
    outline = (np.asarray(full) == (255, 59, 48)).all(axis=2)
    rows, columns = np.nonzero(outline)
    assert {33, 34, 35} >= {int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)}


def test_notes_and_remarks_do_not_overlap_images() -> None:
    """They take room of their own: the pictures are whole, and each text adds ink where it belongs."""
    red = Image.new("RGB", (100, 100), (200, 0, 0))
    plain = contact_sheet([Row("label", [Cell(red)])], "Title", 100)
    noted = contact_sheet([Row("label", [Cell(red)])], "Title", 100, note="a note that is so long that it wraps " * 2)
    about = contact_sheet([Row("label", [Cell(red)], about="a remark of so many words that it wraps")], "Title", 100)
    assert noted.height > plain.height
    assert about.size == plain.size, "beside the picture there is room"
    for sheet in (plain, noted, about):
        assert np.asarray(sheet).reshape(-1, 3).tolist().count([200, 0, 0]) == 100 * 100
    more = noted.height - plain.height
    assert ink(noted, (0, 50, noted.width, 50 + more)) > 100
    assert np.array_equal(np.asarray(noted)[60 + more :], np.asarray(plain)[60:]), "all below moved down together"
    left = (0, 0, plain.width - 28 - 101, plain.height)
    assert ink(about, left) > ink(plain, left) + 100
    long = contact_sheet([Row("label", [Cell(red)], about="more words " * 20)], "Title", 100)
    assert long.height > plain.height, "the row grows with its remark"


def test_an_arrow_points_from_the_first_to_the_second_image() -> None:
    red, blue = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (30, 30), (0, 0, 200))
    both = np.asarray(arrowed(red, blue, side=80))
    assert both.shape == (80, 180, 3)
    assert (both[:, :80] == (200, 0, 0)).all()
    assert (both[:, 100:] == (0, 0, 200)).all()
    tall = (both[:, 80:100] < 200).all(axis=2).sum(axis=0)
    assert tall[:2].sum() == tall[-2:].sum() == 0, "it touches neither"
    assert 0 < tall[4] < tall[12] > tall[15] > 0, "a shaft, and a head that comes to a point on the right"


def test_nothing_is_drawn_in_the_margins(gallery: Gallery) -> None:
    long = "a photo of sks cup on a red background, very long, " * 6 + "x" * 200
    rows = [Row(long, [Cell(gallery("coffee"), long, (-50, -50, 9000, 9000)) for _ in range(n)]) for n in (3, 1, 0)]
    sheet = contact_sheet(rows, long, thumb=120)
    assert ink(sheet, (sheet.width - 26, 0, sheet.width, sheet.height)) == 0
    assert ink(sheet, (0, 0, 26, sheet.height)) == 0
    assert ink(sheet, (0, sheet.height - 20, sheet.width, sheet.height)) == 0


def test_a_box_larger_than_the_image_is_clipped() -> None:
    white = Image.new("RGB", (100, 100), "white")
    sheet = np.asarray(contact_sheet([Row("", [Cell(white, "", (-40, -40, 140, 140))])], thumb=100))
    rows, columns = np.nonzero((sheet == (255, 59, 48)).all(axis=2))
    assert rows.max() - rows.min() == columns.max() - columns.min() == 99


def test_long_captions_end_in_an_ellipsis_after_four_lines() -> None:
    cup = Image.new("RGB", (100, 100))
    heights = [contact_sheet([Row("", [Cell(cup, "cup " * 10 * n)])], thumb=100).height for n in (1, 5, 50)]
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("thumb", [48, 192, 512])
def test_every_mode_shape_and_thumb_size_is_drawn(thumb: int) -> None:
    cells = [Cell(Image.new(mode, size), "é ü ß 1:2") for mode in ("L", "RGBA", "P") for size in ((5, 900), (64, 64))]
    sheet = contact_sheet([Row("row", cells)], thumb=thumb)
    assert sheet.mode == "RGB"
    assert sheet.width > 6 * thumb


def test_an_empty_sheet_is_an_image() -> None:
    assert min(contact_sheet([]).size) > 0
    assert min(contact_sheet([Row("alone", [])], "title").size) > 0


def test_a_sheet_is_saved_as_png(tmp_path: Path, gallery: Gallery) -> None:
    sheet = contact_sheet([Row("cup", [Cell(gallery("coffee"), "as it came")])], "One cup")
    save_png(sheet, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.format == "PNG"
        assert saved.tobytes() == sheet.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
