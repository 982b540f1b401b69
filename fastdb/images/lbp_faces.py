"""Fallback face detector with the LBP cascade of scikit-image.

The cascade has a few hits on many things, such as cats, dogs and wheels. A face gets many hits, at neighbouring places,
in the mirrored image too, and again at other sizes and small tilts. The first search requires some agreement between
the hits, and a second search around each candidate gives the score.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Floats = NDArray[np.float64]

_SHORT, _LONG = 240, 480
"""Maximum pixels on the shorter and longer side of the reduced image for the first search."""
_SMALLEST = 0.15
"""Width of the smallest face in shares of the shorter side."""
_CANDIDATE = 4.0
"""Agreement in the first search that leads to a second search."""
_SIZES, _TILTS = (36, 48, 60), (-6, 0, 6)
"""Widths in pixels and tilts in degrees of a candidate in the second search."""
_HALF_SCORE = 10.0
"""Agreement in the second search that gives a score of one half. It was 58 to 510 on crops of portraits and hardly ever
over 54 on crops of dogs, cats and things; 56.7 gives a score of 0.85."""


def find_faces(image: Image.Image) -> list[tuple[float, float, float, float, float]]:
    """Return the box and the score of every plausible face.

    A row is left, top, right and bottom in pixels, and a score from 0 to 1.
    """
    grey = image.convert("L")
    scale = min(1.0, _SHORT / min(grey.size), _LONG / max(grey.size))
    small = grey.resize(
        (round(grey.width * scale), round(grey.height * scale)), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    smallest = max(24, round(_SMALLEST * min(small.size)))
    straight = _hits(small, smallest, min(small.size))
    mirrored = _hits(ImageOps.mirror(small), smallest, min(small.size))
    mirrored[:, 0] = small.width - mirrored[:, 0] - mirrored[:, 2]
    faces = []
    for window in _agreeing(straight, mirrored):
        x, y, side = (float(value) / scale for value in window)
        agreement = _search_again(grey, x, y, side)
        # The cascade's square ends above the chin; compared to YuNet on portraits, this box has the whole face.
        faces.append((x, y - 0.08 * side, x + side, y + 1.1 * side, agreement / (agreement + _HALF_SCORE)))
    return faces


@lru_cache(maxsize=1)
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _hits(grey: Image.Image, smallest: int, largest: int) -> Floats:
    """Return the cascade's ungrouped hits as rows of left, top, side."""
    hits = _cascade().detect_multi_scale(
        np.asarray(grey),
        scale_factor=1.05,
        step_ratio=1,
        min_size=(smallest, smallest),
        max_size=(largest, largest),
        min_neighbor_number=0,
        intersection_score_threshold=2.0,
    )
    return np.array([(hit["c"], hit["r"], hit["width"]) for hit in hits], dtype=np.float64).reshape(-1, 3)


def _agreeing(straight: Floats, mirrored: Floats) -> list[Floats]:
    """Return the median windows of clusters that both images support.

    Larger clusters are formed first.
    """
    windows = np.concatenate((straight, mirrored))
    is_mirrored = np.arange(len(windows)) >= len(straight)
    near = _overlap(windows) > 0.5
    left = np.ones(len(windows), dtype=bool)
    clusters: list[Floats] = []
    while left.any():
        support = (near & left).sum(axis=1) * left
        members = near[int(support.argmax())] & left
        left &= ~members
        if _agreement(int((members & ~is_mirrored).sum()), int((members & is_mirrored).sum())) >= _CANDIDATE:
            clusters.append(np.median(windows[members], axis=0))
    return clusters


def _agreement(straight: int, mirrored: int) -> float:
    """Return the harmonic mean of the hits in both images."""
    return 2.0 * straight * mirrored / max(straight + mirrored, 1)


def _search_again(grey: Image.Image, x: float, y: float, side: float) -> float:
    """Return the agreement on a candidate over all sizes and tilts."""
    around = (round(x - side / 2), round(y - side / 2), round(x + 1.5 * side), round(y + 1.5 * side))
    region = grey.crop(around)
    counts = [0, 0]
    for pixels in _SIZES:
        sized = region.resize((2 * pixels, 2 * pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)
        for tilt in _TILTS:
            tilted = sized.rotate(tilt, Image.Resampling.BILINEAR)
            for turn, seen in enumerate((tilted, ImageOps.mirror(tilted))):
                hits = _hits(seen, round(0.75 * pixels), round(1.35 * pixels))
                off = np.abs(hits[:, :2] + hits[:, 2:] / 2 - pixels)
                counts[turn] += int((off < pixels / 4).all(axis=1).sum())
    return _agreement(*counts)


def _overlap(windows: Floats) -> Floats:
    """Return the intersection over union of all pairs, [n, n]."""
    x, y, side = windows.T
    across = np.minimum.outer(x + side, x + side) - np.maximum.outer(x, x)
    down = np.minimum.outer(y + side, y + side) - np.maximum.outer(y, y)
    common = across.clip(0) * down.clip(0)
    shares: Floats = common / (np.add.outer(side**2, side**2) - common)
    return shares
