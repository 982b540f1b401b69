"""LoRA files of any program for Stable Diffusion 1.x, read as adapters by names in diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fastdb.errors import ModelError
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.models.detect import SD1
from fastdb.models.inspect import inspect
from fastdb.models.layouts.layout import CLIP_PREFIX
from fastdb.models.layouts.tables import layout_of
from fastdb.models.lora.adapter import Pair
from fastdb.models.lora.forms import kohya_layer

_UP, _DOWN, _ALPHA = "up", "down", "alpha"
_SUFFIXES = {
    ".lora_down.weight": _DOWN,
    ".lora_up.weight": _UP,
    ".lora_A.weight": _DOWN,
    ".lora_B.weight": _UP,
    ".lora_A.default.weight": _DOWN,
    ".lora_B.default.weight": _UP,
    ".lora.down.weight": _DOWN,
    ".lora.up.weight": _UP,
    ".lora_linear_layer.down.weight": _DOWN,
    ".lora_linear_layer.up.weight": _UP,
    "_lora.down.weight": _DOWN,
    "_lora.up.weight": _UP,
    ".alpha": _ALPHA,
}
"""Ends of names: of sd-scripts, peft, and diffusers' older forms."""
_OTHER_KINDS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    ".oft_": "an OFT",
    "lora_mid": "a LoCon with a third factor",
}
"""Parts of names of other kinds of adapters."""
_EMBEDDING = "bundle_emb."
"""Begins names of embeddings that OneTrainer puts beside a LoRA."""
_PLAIN = "Use a LoRA of two factors per layer, or merge this file with the program that made it."


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA that was read.

    Attributes:
        adapters: by part, "unet" or "text_encoder", and layer; partial ones are common.
        scale_from: source of the alphas, "its tensors", "its metadata" or "its ranks".
    """

    path: Path
    adapters: Mapping[str, Mapping[str, Pair]]
    metadata: Mapping[str, str]
    scale_from: str

    @property
    def names(self) -> set[str]:
        """The names by which prompts may refer to it."""
        return {self.path.stem, *filter(None, [self.metadata.get("ss_output_name", "")])}

    @property
    def trigger(self) -> str:
        """The trigger word, if the file names one."""
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def prediction(self) -> str:
        """The prediction type that it was trained for, "epsilon", "v_prediction" or "" if unknown."""
        kind = self.metadata.get("modelspec.prediction_type", "")
        if kind in ("v", "v_prediction") or self.metadata.get("ss_base_model_version", "").endswith("_v"):
            return "v_prediction"
        return "epsilon" if kind == "epsilon" else ""

    @property
    def ranks(self) -> list[int]:
        """The different ranks of its layers, sorted."""
        return sorted({pair.rank for adapter in self.adapters.values() for pair in adapter.values()})

    def weighted(self, weight: float) -> LoRAFile:
        """Return the LoRA with its effect multiplied."""
        adapters = {
            part: {layer: replace(pair, alpha=pair.alpha * weight) for layer, pair in adapter.items()}
            for part, adapter in self.adapters.items()
        }
        return replace(self, adapters=adapters)


def read_lora(path: Path) -> LoRAFile:
    """Read a LoRA of Stable Diffusion 1.x.

    Raises:
        ModelError: it is no such file, or of a kind that is not supported, or damaged.
        StorageError: the disk fails.
    """
    file = open_tensors(path)
    _check_kind(path, file)
    factors: dict[tuple[str, str], dict[str, str]] = {}
    for name in file.tensors:
        if name.startswith(_EMBEDDING):
            continue
        raw, kind = _split(path, name)
        factors.setdefault(_layer(path, raw), {})[kind] = name
    adapters: dict[str, dict[str, Pair]] = {}
    header, sources = _header(file), set()
    for (part, layer), names in sorted(factors.items()):
        down, up = (_factor(file, names, kind, layer) for kind in (_DOWN, _UP))
        pair = Pair(down, up, float(down.shape[0]))
        _check_shapes(path, layer, pair)
        if _ALPHA in names:
            pair, source = replace(pair, alpha=float(file.read(names[_ALPHA]).item())), "its tensors"
        elif (alpha := _alpha_in(header, part, layer, pair.rank)) is not None:
            pair, source = replace(pair, alpha=alpha), "its metadata"
        else:
            source = "its ranks"
        sources.add(source)
        adapters.setdefault(part, {})[layer] = pair
    return LoRAFile(path, adapters, file.metadata, " and ".join(sorted(sources)))


def _check_kind(path: Path, file: TensorFile) -> None:
    what = inspect(path).what
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in name for name in file.tensors):
            raise ModelError(f"is {kind}, which is not supported", subject=path, fix=_PLAIN)
    if what.role != "LoRA":
        raise ModelError(f"is no LoRA but a {what.role}", subject=path, fix="Give the file of a LoRA.")
    if what.family not in ("", SD1):
        raise ModelError(
            f"is a LoRA for {what.family}, and only those for {SD1} are supported",
            subject=path,
            fix=f"Choose a LoRA that was trained on {SD1}.",
        )


def _split(path: Path, name: str) -> tuple[str, str]:
    """Return the layer's name in the file and the kind of a tensor."""
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            layer = name.removesuffix(suffix).removeprefix("base_model.model.")
            if suffix.startswith("_lora") and ".processor." in layer:
                layer = re.sub(r"to_out$", "to_out.0", layer.replace(".processor.", "."))
            return layer, kind
    raise ModelError(f"contains the unknown tensor {name}", subject=path, fix=_PLAIN)


@cache
def _known() -> dict[str, tuple[str, str]]:
    """Return part and layer by every name that programs give a layer of Stable Diffusion 1.x."""
    known: dict[str, tuple[str, str]] = {}
    for line in layout_of("sd1").lines.values():
        for name in line.names:
            layer, _, kind = name.rpartition(".")
            if line.part == "vae" or kind != "weight":
                continue
            target = line.part, layer
            for variant in {layer, layer.removeprefix(CLIP_PREFIX)}:
                kohya = kohya_layer(line.part, variant)
                known |= {f"{line.part}.{variant}": target, kohya: target}
                # diffusers' converter numbers the only encoder too; SD 1.x UNets may come without a prefix.
                known |= {kohya.replace("lora_te_", "lora_te1_"): target, variant: target}
    return known


def _layer(path: Path, name: str) -> tuple[str, str]:
    if name not in _known():
        raise ModelError(
            f"contains {name}, which is no layer of {SD1}",
            subject=path,
            fix=f"Choose a LoRA that was trained on {SD1}.",
        )
    return _known()[name]


def _factor(file: TensorFile, names: Mapping[str, str], kind: str, layer: str) -> Any:
    if kind not in names:
        raise ModelError(f"lacks the {kind} factor of {layer}", subject=file.path, fix="Download it again.")
    return file.read(names[kind])


def _check_shapes(path: Path, layer: str, pair: Pair) -> None:
    down, up = tuple(pair.down.shape), tuple(pair.up.shape)
    if len(down) < 2 or len(up) < 2 or not pair.rank or up[1] != down[0] or any(size != 1 for size in up[2:]):
        raise ModelError(
            f"the factors of {layer} do not fit together: {list(up)} and {list(down)}",
            where=path,
            fix="Download it again.",
        )


def _header(file: TensorFile) -> dict[str, Any]:
    """Return the settings of peft, as diffusers writes them into the header or peft beside the file."""
    text = file.metadata.get("lora_adapter_metadata", "")
    beside = file.path.with_name("adapter_config.json")
    try:
        if not text and beside.is_file():
            values = json.loads(beside.read_text(encoding="utf-8"))
            return {f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in values.items()}
        values = json.loads(text or "{}")
    except (ValueError, OSError):
        return {}
    return values if isinstance(values, dict) else {}


def _alpha_in(header: Mapping[str, Any], part: str, layer: str, rank: int) -> float | None:
    """Return a layer's alpha by the rules of peft, so that alpha over rank is the scale."""
    patterns = header.get(f"{part}.alpha_pattern") or {}
    chosen = [value for pattern, value in patterns.items() if layer == pattern or layer.endswith(f".{pattern}")]
    alpha = chosen[0] if chosen else header.get(f"{part}.lora_alpha")
    if not isinstance(alpha, int | float):
        return None
    return float(alpha) * (rank**0.5 if header.get(f"{part}.use_rslora") else 1.0)
