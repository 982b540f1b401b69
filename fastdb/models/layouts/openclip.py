"""OpenCLIP, the text encoder of SD 2 and the second of SDXL: other names, and query, key and value in one tensor."""

from __future__ import annotations

from collections.abc import Iterator

from fastdb.models.layouts.clip import PREFIX
from fastdb.models.layouts.tensor_mapping import Line, both

BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TABLES = {"token_embedding": "token_embedding.weight", "position_embedding": "positional_embedding"}


def lines(part: str, root: str, *, layers: int, projection: bool) -> Iterator[Line]:
    """Every tensor of the text encoder `part`, which lies behind `root` in an original file.

    Args:
        layers: as many as diffusers has. SD 2 has 24 in the original and reads the last but one, so 23.
        projection: with the projection of the pooled text. The original multiplies by it from the right, x @ P,
            diffusers has a linear layer, x @ W.T: so P is W transposed. It is square; a mistake shows in no shape.
    """
    for ours, theirs in TABLES.items():
        yield Line(original=f"{root}.{theirs}", part=part, names=(f"{PREFIX}embeddings.{ours}.weight",))
    yield from both(part, f"{PREFIX}final_layer_norm", f"{root}.ln_final")
    if projection:
        original = f"{root}.text_projection"
        yield Line(original=original, part=part, names=("text_projection.weight",), change="transposed")
    for number in range(layers):
        ours, theirs = f"{PREFIX}encoder.layers.{number}", f"{root}.transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            names = tuple(f"{ours}.self_attn.{matrix}_proj.{kind}" for matrix in "qkv")
            yield Line(original=f"{theirs}.attn.in_proj_{kind}", part=part, names=names, change="fused")
        for our, their in BLOCK.items():
            yield from both(part, f"{ours}.{our}", f"{theirs}.{their}")
