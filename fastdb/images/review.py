"""The picture a person looks at before training: each photo with its crop and faces, and what training will see."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.crop import crop_square
from fastdb.images.intake import Added
from fastdb.images.photos import read_photo


def review_sheet(name: str, added: Sequence[Added]) -> Image:
    """Two rows: the photos with the crop drawn in, the crops.

    Raises:
        ImageError: a photo has gone since it was added.
    """
    photos, crops = [], []
    for one in added:
        photo = read_photo(one.source)
        box = (one.crop.left, one.crop.top, one.crop.left + one.crop.size, one.crop.top + one.crop.size)
        photos.append(Cell(photo, one.name, box))
        crops.append(Cell(crop_square(photo, one.crop, 512), one.crop.reason))
    return contact_sheet([Row("photo and crop", photos), Row("what training sees", crops)], title=name)
