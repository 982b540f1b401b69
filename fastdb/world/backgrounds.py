"""Backgrounds of drawn pictures, measured at their border."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from fastdb.world.draw import SIDE, background
from fastdb.world.scene import TEXTURES

RING = 5
"""Width in pixels of the border that shows the background."""


def find_backgrounds(pictures: torch.Tensor) -> torch.Tensor:
    """Return the background of each picture, without its object.

    The two tones are medians of the border's pixels; the texture is the one that leaves the smallest error there. So
    shades without a name are measured as they are.

    Args:
        pictures: float (n, 3, 64, 64) in -1 to 1.
    """
    ring = torch.ones(SIDE, SIDE, dtype=torch.bool)
    ring[RING:-RING, RING:-RING] = False
    candidates, errors = [], []
    for second in _second_tones():
        candidate = torch.empty_like(pictures)
        for place in (second, ~second):
            if place.any():
                tone = pictures[:, :, place & ring].median(-1).values
                candidate[:, :, place] = tone[..., None]
        candidates.append(candidate)
        # Parts of an object at the border count little.
        errors.append((pictures - candidate)[:, :, ring].abs().clamp(max=0.3).mean((1, 2)))
    best = torch.stack(errors).argmin(0)
    return torch.stack(candidates)[best, torch.arange(len(pictures))]


@cache
def _second_tones() -> torch.Tensor:
    """Return where each texture has its second tone, bool (textures, 64, 64)."""
    seen = [np.asarray(background((255, 255, 255), texture))[..., 0] < 255 for texture in TEXTURES]
    return torch.from_numpy(np.stack(seen))
