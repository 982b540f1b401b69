"""Which files of a diffusers repository are needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastdb.errors import ModelError

INDEX = "model_index.json"

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that neither training nor making pictures here has a use for."""

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml")
_NAME = re.compile(
    r"(diffusion_pytorch_model|model)(?P<half>\.fp16)?(?P<shard>-\d{5}-of-\d{5})?\.safetensors", re.ASCII
)
_SIDE = (".json", ".txt", ".model")


def needed(names: Sequence[str], components: Sequence[str], half: bool, shown: str) -> list[str]:
    """What the components need: configurations, tokenizers, and one set of weights each.

    Never a pickle, never another framework's copy. `half` prefers the fp16 variant, which else serves only where there
    is nothing else.

    Raises:
        ModelError: a component has its weights in no safetensors file.
    """
    chosen: list[str] = []
    for component in components:
        inside = [name.split("/")[1] for name in names if re.fullmatch(rf"{re.escape(component)}/[^/]+", name)]
        weights = _weights(inside, half)
        others = sorted(name for name in inside if name.endswith(_WEIGHTS))
        if not weights and others:
            raise ModelError(
                f"the {component} is there only as {others[0]}, which is not read",
                where=shown,
                fix="Choose a repository that has it as model.safetensors or diffusion_pytorch_model.safetensors.",
            )
        side = [name for name in inside if name.endswith(_SIDE) and ".index." not in name]
        if weights and "-of-" in weights[0]:
            wanted = ".safetensors.index.fp16.json" if ".fp16" in weights[0] else ".safetensors.index.json"
            side += [name for name in inside if name.endswith(wanted)]
        chosen += [f"{component}/{name}" for name in sorted([*side, *weights])]
    return chosen


def _weights(inside: Sequence[str], half: bool) -> list[str]:
    """The safetensors files of one component: of the precision that is wanted if there is one, rather whole than in
    pieces."""
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for name in sorted(inside):
        found = _NAME.fullmatch(name)
        if found:
            kinds.setdefault((bool(found["half"]) != half, bool(found["shard"])), []).append(name)
    return kinds[min(kinds)] if kinds else []
