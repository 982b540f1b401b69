"""Names and shapes of Stable Diffusion 1.x, part by part, from diffusers to an original file.

What the export of today's only trainable family asks; every family in both directions is in `layouts.families`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from fastdb.errors import ModelError
from fastdb.models.layouts.families import layout_of
from fastdb.models.layouts.mapping import modern_name

__all__ = ["POSITION_IDS", "key_table", "modern_name", "original_keys", "original_shape"]

SD1 = layout_of("sd1")

POSITION_IDS = SD1.position_ids[0]
"""int64, [1, tokens]: 0, 1, 2, ...; a buffer of the original text encoder."""


def original_keys(part: str, names: Iterable[str]) -> dict[str, str]:
    """Map each diffusers name, as given, to its name in the original layout.

    Args:
        part: "unet", "vae" or "text_encoder".
        names: as in a diffusers file; the autoencoder's attention in either generation of names, the text encoder
            with or without `text_model.`, its `position_ids` left out of the answer.

    Raises:
        ModelError: a name does not belong to Stable Diffusion 1.x, or two names mean the same tensor.
    """
    table = key_table(part)
    return {name: table[modern] for modern, name in SD1.known(part, names).items()}


def original_shape(part: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the original layout: the autoencoder's attention is made of 1 x 1 convolutions, [out, in, 1, 1].

    Raises:
        ModelError: a shape that this tensor cannot have.
    """
    return SD1.by_name[part, modern_name(part, name)].original_shape(shape)


@cache
def key_table(part: str) -> Mapping[str, str]:
    """All names of a part of Stable Diffusion 1.x: diffusers -> original.

    Raises:
        ModelError: there is no such part.
    """
    if part not in SD1.parts:
        parts = ", ".join(SD1.parts)
        raise ModelError("is no part of a model", where=part, fix=f"There are: {parts}.")
    return MappingProxyType({name: line.original for (of, name), line in SD1.by_name.items() if of == part})
