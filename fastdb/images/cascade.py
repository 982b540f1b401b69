"""The fallback face detector: scikit-image's LBP cascade, made wary of cats, dogs and cups.

The cascade fires on many things a few times. A face makes it fire often, at neighbouring places and sizes,
and as often in the mirrored picture; that agreement is the score.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Floats = NDArray[np.float64]

_SHORT, _LONG = 240, 480
"""Pixels the picture is shrunk to before the search: at most these on its shorter and longer side."""
_SMALLEST = 0.15
"""Width of the smallest face looked for, in shares of the shorter side."""
_HALF_SURE = 1.3
"""Agreement at which the score is one half."""


def find_faces(image: Image.Image) -> list[tuple[float, float, float, float, float]]:
    """Left, top, right, bottom in pixels of `image` and a score from 0 to 1 for every plausible face."""
    scale = min(1.0, _SHORT / min(image.size), _LONG / max(image.size))
    width, height = (round(length * scale) for length in image.size)
    small = image.convert("L").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    straight = _hits(small)
    mirrored = _hits(ImageOps.mirror(small))
    mirrored[:, 0] = width - mirrored[:, 0] - mirrored[:, 2]
    faces = []
    for (x, y, side), score in _agreeing(straight, mirrored):
        # The cascade's square ends above the chin: measured against YuNet on portraits, this is the whole face.
        left, top, right, bottom = x, y - 0.08 * side, x + side, y + 1.1 * side
        faces.append((left / scale, top / scale, right / scale, bottom / scale, score))
    return faces


@lru_cache(maxsize=1)
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]


def _hits(grey: Image.Image) -> Floats:
    """Every window the cascade fires on, ungrouped, as rows of left, top and side."""
    smallest = max(24, round(_SMALLEST * min(grey.size)))
    found = _cascade().detect_multi_scale(
        np.asarray(grey),
        scale_factor=1.05,
        step_ratio=1,
        min_size=(smallest, smallest),
        max_size=grey.size,
        min_neighbor_number=0,
        intersection_score_threshold=2.0,
    )
    return np.array([(hit["c"], hit["r"], hit["width"]) for hit in found], dtype=np.float64).reshape(-1, 3)


def _agreeing(straight: Floats, mirrored: Floats) -> list[tuple[Floats, float]]:
    """Clusters of hits as their median window and a score; the largest cluster takes its members first."""
    windows = np.concatenate((straight, mirrored))
    is_mirrored = np.arange(len(windows)) >= len(straight)
    near = _overlap(windows) > 0.5
    left = np.ones(len(windows), dtype=bool)
    clusters = []
    while left.any():
        support = (near & left).sum(axis=1) * left
        members = near[int(support.argmax())] & left
        left &= ~members
        both = int((members & ~is_mirrored).sum()), int((members & is_mirrored).sum())
        if min(both) >= 2:
            agreement = 2 * both[0] * both[1] / sum(both)  # harmonic mean: one-sided support counts little
            clusters.append((np.median(windows[members], axis=0), agreement / (agreement + _HALF_SURE)))
    return clusters


def _overlap(windows: Floats) -> Floats:
    """Intersection over union of every window with every other, [n, n]."""
    x, y, side = windows.T
    across = np.minimum.outer(x + side, x + side) - np.maximum.outer(x, x)
    down = np.minimum.outer(y + side, y + side) - np.maximum.outer(y, y)
    common = across.clip(0) * down.clip(0)
    shares: Floats = common / (np.add.outer(side**2, side**2) - common)
    return shares
