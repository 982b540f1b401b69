"""Square crops around the largest face or the most salient region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fastdb.images.faces import LIKELY, SURE, Face, detect_faces

Floats = NDArray[np.float64]

HEAD_AND_SHOULDERS = 2.75
"""Side of the square in heights of the face."""
FACE_HEIGHT_AT = 0.43
"""Distance of the face's middle from the top of the square; shoulders need more space than hair."""
SMALL_FACE = 0.1
"""Below this share of the shorter side a face is not the subject; it is kept in view, but not zoomed in on."""
TINY_FACE = 0.03
"""Below this share of the shorter side a face is ignored."""
PULL = 1.0
"""Additional share of all salience that outweighs the distance of a whole photo from the expected place."""
SUBJECT_AT = {"across": 0.5, "down": 0.4}
"""Expected place of the subject along wide and tall photos; heads are above the middle."""
MOST_ENLARGED = 1.5
"""Maximum enlargement of a crop around a face."""
WHOLE = "used whole"
"""The reason of a crop that is the whole photo."""


@dataclass(frozen=True)
class Crop:
    """A square of a photo in pixels."""

    left: int
    top: int
    size: int
    reason: str
    """A short label for the user, such as `face (YuNet, 0.93)`."""
    faces: tuple[Face, ...] = ()
    """The detected faces, the deciding face first, then the largest."""
    whole: bool = False
    """The square is the whole photo."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.left + self.size, self.top + self.size


def choose_crop(image: Image.Image, *, size: int = 0, keep_square: bool = False) -> Crop:
    """Return the square of a photo to train on.

    A face with a high score and of some size gives a square with head and shoulders. Otherwise the square is as large
    as possible in the most salient region, and keeps small faces and likely heads, such as a pet's, in view.

    Args:
        image: an upright RGB photo.
        size: pixels that the crop will be resized to, 0 if unknown; limits the enlargement of a face.
        keep_square: use a square photo whole, without looking for faces.

    Raises:
        ImageError: the configured face detector cannot be used (see `faces.face_detector`).
    """
    if keep_square and image.width == image.height:
        return Crop(0, 0, image.width, WHOLE, whole=True)
    short = min(image.size)
    faces = tuple(face for face in detect_faces(image, least=LIKELY) if face.height >= TINY_FACE * short)
    sure = [face for face in faces if face.score >= SURE and face.height >= SMALL_FACE * short]
    if sure:
        face = sure[0]
        left, top, side = _around(face, image.size, size)
        others = (other for other in faces if other != face)
        return Crop(left, top, side, f"face ({face.detector}, {face.score:.2f})", (face, *others))
    left, top = _most_salient(image, faces[0] if faces else None)
    if image.width == image.height:
        reason = WHOLE
    elif faces:
        name = "small face" if faces[0].score >= SURE else "likely head"
        reason = f"{name} kept in view ({faces[0].detector}, {faces[0].score:.2f})"
    else:
        reason = "most detail"
    return Crop(left, top, short, reason, faces, image.width == image.height)


def crop_square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Return a crop of an image, resized to `size` x `size` pixels."""
    return image.resize((size, size), Image.Resampling.LANCZOS, box=crop.box, reducing_gap=3.0)


def _around(face: Face, picture: tuple[int, int], size: int) -> tuple[int, int, int]:
    """Return left, top and side of the head-and-shoulders square."""
    wanted = max(HEAD_AND_SHOULDERS * face.height, face.right - face.left, size / MOST_ENLARGED)
    side = min(round(wanted), *picture)
    middle = (face.left + face.right) / 2
    left = _placed(middle - side / 2, side, picture[0], face.left, face.right)
    top = _placed((face.top + face.bottom) / 2 - FACE_HEIGHT_AT * side, side, picture[1], face.top, face.bottom)
    return left, top, side


def _placed(start: float, side: int, length: int, first: int, last: int) -> int:
    """Move `start` to the nearest start that `_span` allows."""
    low, high = _span(side, length, first, last)
    return min(max(round(start), low), high)


def _span(side: int, length: int, first: int, last: int) -> tuple[int, int]:
    """Return the smallest and largest start of an interval.

    The interval of `side` lies in 0..`length` and contains `first`..`last`. If `first`..`last` is longer than `side`,
    the interval lies inside it instead.
    """
    low, high = sorted((last - side, first))
    limit = length - side
    return min(max(low, 0), limit), min(max(high, 0), limit)


def _most_salient(image: Image.Image, head: Face | None) -> tuple[int, int]:
    """Return left and top of the most salient square with `head` inside."""
    side, length = min(image.size), max(image.size)
    wide = image.width >= image.height
    low, high = 0, length - side
    if head is not None:
        first, last = (head.left, head.right) if wide else (head.top, head.bottom)
        # The detector's box fits an animal's head loosely, so only its middle has to be inside.
        spare = 0 if head.score >= SURE else (last - first) // 4
        low, high = _span(side, length, first + spare, last - spare)
    if low == high:
        start = low
    else:
        along = _salience(image).sum(axis=0 if wide else 1)
        window = side / length, low / length, high / length
        start = round(_best_start(along / along.sum(), *window, SUBJECT_AT["across" if wide else "down"]) * length)
    return (start, 0) if wide else (0, start)


def _best_start(along: Floats, side: float, low: float, high: float, expected: float) -> float:
    """Return the start of the interval with the largest sum.

    `along` are the values, `side` the interval's length, and `low` and `high` the limits of its start, all in shares
    of the whole length. Among intervals with similar sums, the nearest to `expected` is chosen.
    """
    total = np.concatenate(([0.0], np.cumsum(along)))
    at = np.linspace(0.0, 1.0, len(total))
    starts = np.linspace(low, high, 257)
    sums = np.interp(starts + side, at, total) - np.interp(starts, at, total)
    return float(starts[np.argmax(sums - PULL * (starts + side / 2 - expected) ** 2)])


def _salience(image: Image.Image) -> Floats:
    """Return the salience of a small copy of an image.

    All values are positive, float [rows, columns]. Half is the distance of the blurred colour from the mean colour
    (Achanta and others, "Frequency-tuned salient region detection", 2009; here in YCbCr), half the strength of edges.
    """
    scale = 160 / max(image.size)
    small = image.resize(
        (max(8, round(image.width * scale)), max(8, round(image.height * scale))),
        Image.Resampling.BOX,
        reducing_gap=2.0,
    )
    blurred = np.asarray(small.filter(ImageFilter.GaussianBlur(2)).convert("YCbCr"), dtype=np.float64)
    colour = np.linalg.norm(blurred - blurred.mean(axis=(0, 1)), axis=2)
    down, across = np.gradient(blurred, axis=(0, 1))
    edges = np.sqrt((down**2 + across**2).sum(axis=2))
    even = 1e-3  # makes an image of one colour equally salient everywhere
    salience: Floats = colour / (colour.mean() + even) + edges / (edges.mean() + even) + even
    return salience
