"""CLIP, the text encoder of SD 1 and the first of SDXL: the same names in both layouts, behind a prefix.

The prefix `text_model.` comes and goes: transformers 5 saves a text encoder that it made from a configuration without
it, and diffusers refuses an original file that lacks it. Both are read, the prefixed one is written.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastdb.models.layouts.tensor_mapping import Line, both

PREFIX = "text_model."
POSITION_IDS = f"{PREFIX}embeddings.position_ids"
"""int64, [1, tokens]: 0, 1, 2, ...; a buffer that older files hold."""
LAYERS = (
    *(f"self_attn.{matrix}_proj" for matrix in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)


def lines(part: str, root: str, *, layers: int) -> Iterator[Line]:
    """Every tensor of the text encoder `part`, which lies behind `root` in an original file."""
    for table in ("token_embedding", "position_embedding"):
        name = f"{PREFIX}embeddings.{table}.weight"
        yield Line(original=f"{root}.{name}", part=part, names=(name,))
    places = [f"{PREFIX}encoder.layers.{block}.{layer}" for block in range(layers) for layer in LAYERS]
    for place in (*places, f"{PREFIX}final_layer_norm"):
        yield from both(part, place, f"{root}.{place}")


def modern(name: str) -> str:
    """Today's name of a tensor of a text encoder, given with or without its prefix."""
    return name if name.startswith((PREFIX, "text_projection.")) else PREFIX + name
