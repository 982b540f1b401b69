"""The names in an original Stable Diffusion 1.x file, part by part, out of the independent account of all families."""

from __future__ import annotations

import original_names


def unet() -> list[str]:
    """686 names."""
    return list(original_names.unet())


def vae() -> list[str]:
    """248 names."""
    return list(original_names.vae())


def text_encoder() -> list[str]:
    """196 names, and the buffer `position_ids`."""
    return list(original_names.text_encoder())
