"""The square of a photo that training sees: around the largest face, or else where most is to be seen."""

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
"""Where in the square, from its top, the middle of the face lies: shoulders need more room than hair."""
SMALL_FACE = 0.1
"""A face lower than this share of the shorter side is not what the photo is about: it is kept inside, not zoomed on."""
TINY_FACE = 0.03
"""A face lower than this share of the shorter side is passed over."""
PULL = 1.0
"""Share of all there is to be seen that a square a whole picture away from the expected place must hold more."""
SUBJECT_AT = {"across": 0.5, "down": 0.4}
"""Where along a picture its subject is expected: in the middle of a wide one, above it in a tall one (heads are up)."""
MOST_ENLARGED = 1.5
"""A crop around a face is taken large enough to be blown up by no more than this."""


@dataclass(frozen=True)
class Crop:
    """A square of a photo in its pixels, why it was chosen, and the faces seen: the deciding one, then the largest."""

    left: int
    top: int
    size: int
    reason: str
    faces: tuple[Face, ...] = ()

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.size, self.top + self.size


def choose_crop(image: Image.Image, *, size: int = 0) -> Crop:
    """The square of `image` to train on.

    A sure face of some size gives a square with head and shoulders around it. Otherwise the square is as
    large as the picture allows and lies where most is to be seen; a head that is likely, such as a pet's, or
    small, stays in view.

    Args:
        image: an upright RGB photo.
        size: pixels the crop will be resized to, 0 for unknown; keeps a face crop from being blown up much.

    Raises:
        ImageError: the face detector asked for cannot be used (see `faces.face_detector`).
    """
    short = min(image.size)
    faces = tuple(face for face in detect_faces(image, least=LIKELY) if face.height >= TINY_FACE * short)
    sure = [face for face in faces if face.score >= SURE and face.height >= SMALL_FACE * short]
    if sure:
        face = sure[0]
        left, top, side = _around(face, image.size, size)
        return Crop(left, top, side, f"face ({face.detector}, {face.score:.2f})", _first(face, faces))
    left, top = _most_salient(image, faces[0] if faces else None)
    if image.width == image.height:
        reason = "already square"
    elif faces:
        name = "small face" if faces[0].score >= SURE else "likely head"
        reason = f"{name} kept in view ({faces[0].detector}, {faces[0].score:.2f})"
    else:
        reason = "most detail"
    return Crop(left, top, short, reason, faces)


def crop_square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """The crop's square of `image`, resized to `size` x `size` pixels by Lanczos."""
    return image.resize((size, size), Image.Resampling.LANCZOS, box=crop.box, reducing_gap=3.0)


def _first(face: Face, faces: tuple[Face, ...]) -> tuple[Face, ...]:
    return (face, *(other for other in faces if other != face))


def _around(face: Face, picture: tuple[int, int], size: int) -> tuple[int, int, int]:
    """Left, top and side of the head-and-shoulders square, moved into the picture, the face's box inside it."""
    wanted = max(HEAD_AND_SHOULDERS * face.height, face.width, size / MOST_ENLARGED)
    side = min(round(wanted), *picture)
    middle = (face.left + face.right) / 2
    left = _placed(middle - side / 2, side, picture[0], face.left, face.right)
    top = _placed((face.top + face.bottom) / 2 - FACE_HEIGHT_AT * side, side, picture[1], face.top, face.bottom)
    return left, top, side


def _placed(start: float, side: int, length: int, first: int, last: int) -> int:
    """`start` moved so that the stretch of `side` lies in 0..`length` and holds `first`..`last` as far as it can."""
    low, high = _span(side, length, first, last)
    return min(max(round(start), low), high)


def _span(side: int, length: int, first: int, last: int) -> tuple[int, int]:
    """Smallest and largest start of a stretch of `side` inside 0..`length` that holds `first`..`last`.

    When `first`..`last` is longer than `side` the stretch lies inside it instead: as much as possible.
    """
    low, high = sorted((last - side, first))
    limit = length - side
    return min(max(low, 0), limit), min(max(high, 0), limit)


def _most_salient(image: Image.Image, head: Face | None) -> tuple[int, int]:
    """Left and top of the largest square where most is to be seen, `head` inside it; the middle on a tie."""
    side, length = min(image.size), max(image.size)
    wide = image.width >= image.height
    low, high = 0, length - side
    if head is not None:
        first, last = (head.left, head.right) if wide else (head.top, head.bottom)
        # An animal's box lies loosely on its head: only the middle of it is binding.
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
    """Start, from `low` to `high`, of the stretch of `side` with most of `along` in it, all in shares of the length.

    Stretches that hold about as much are told apart by how near their middle is to `expected`.
    """
    total = np.concatenate(([0.0], np.cumsum(along)))
    at = np.linspace(0.0, 1.0, len(total))
    starts = np.linspace(low, high, 257)
    held = np.interp(starts + side, at, total) - np.interp(starts, at, total)
    return float(starts[np.argmax(held - PULL * (starts + side / 2 - expected) ** 2)])


def _salience(image: Image.Image) -> Floats:
    """How much each point of a small copy of `image` stands out, all positive, float [rows, columns].

    Half is distance of the blurred colour from the mean colour of the picture (Achanta and others,
    "Frequency-tuned salient region detection", 2009; here in YCbCr), half is the strength of edges.
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
    even = 1e-3  # a picture of one colour stands out equally everywhere
    salience: Floats = colour / (colour.mean() + even) + edges / (edges.mean() + even) + even
    return salience
