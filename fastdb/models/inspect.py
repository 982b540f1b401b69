"""What a model file or folder is, told without loading it: no weights are read, and nothing in it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_info import Scalar, TensorInfo, shown
from fastdb.models.detect import FLUX, REFINER, SD1, SD2, SD3, XL, Recognised, recognise
from fastdb.models.diffusers_folder import read_config
from fastdb.reporting import format_bytes
from fastdb.storage.atomic_write import explained

UNKNOWN_V = "unknown: those for 512 px (epsilon) and 768 px (v) have the same tensors; --probe asks the UNet"
MOST_YAML = 1 << 16
"""Bytes of a `.yaml` that are looked at; the usual ones have 2,000."""
WORTH_SHOWING = ("modelspec.title", "modelspec.architecture", "modelspec.trigger_phrase", "ss_base_model_version")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How much of a file has one type of number."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a file or folder is."""

    path: Path
    kind: str
    """`safetensors`, a form of torch.save, or `diffusers folder`."""
    what: Recognised
    prediction: str = ""
    """What the UNet predicts, and how that is known; `unknown: ...` where nothing tells."""
    precisions: tuple[Precision, ...] = ()
    """The one with most bytes first."""
    ema: int = 0
    """Tensors that are a running average of the weights."""
    metadata: Mapping[str, str]
    values: Mapping[str, Scalar]
    """Plain values beside the tensors."""
    neutralised: tuple[str, ...] = ()
    """What a pickle named that is no data; none of it ran."""

    @property
    def is_model(self) -> bool:
        """Whether it is anything that belongs to Stable Diffusion or its kin."""
        return not self.what.why

    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, a name and a text each."""
        what, total = self.what, sum(precision.bytes for precision in self.precisions)
        title = f"not a model, because {what.why}" if what.why else what.role
        titled = f"{title}, inpainting" if what.inpainting else title
        count = sum(precision.tensors for precision in self.precisions)
        told = {
            "what": titled,
            "family": what.family or ("" if what.why else "not told by its tensors"),
            "detail": what.detail,
            "file": ", ".join(text for text in (self.kind, f"{what.naming} naming" if what.naming else "") if text),
            "parts": ", ".join(what.parts),
            "prediction": self.prediction,
            "precision": ", ".join(f"{one.dtype} ({_tensors(one.tensors)})" for one in self.precisions),
            "EMA weights": _tensors(self.ema) if self.ema else "",
            "size": f"{_tensors(count)}, {format_bytes(total)}" if count else "",
            **{name: shown(self.metadata[name]) for name in WORTH_SHOWING if name in self.metadata},
            **{name: shown(str(self.values[name])) for name in ("global_step", "step") if name in self.values},
            "left out": _some(self.neutralised),
        }
        return [(name, text) for name, text in told.items() if text]


def inspect(path: Path) -> Inspection:
    """Tell what a model file, or a folder in diffusers layout, is.

    Raises:
        ModelError: it cannot be read: nothing there, cut short, damaged, a web page, not honest.
        StorageError: the disk fails, or reading is forbidden.
    """
    if path.is_dir():
        with explained(path):
            return _inspect_folder(path)
    file = open_tensors(path)
    main = {name: info.shape for name, info in file.tensors.items() if not name.startswith("optimizer_states.")}
    what = recognise(main)
    return Inspection(
        path=path,
        kind=file.kind,
        what=what,
        prediction=_prediction(what, file.tensors, file.metadata, path),
        precisions=_precisions(file.tensors.values()),
        ema=sum(name.startswith("model_ema.") for name in file.tensors),
        metadata=file.metadata,
        values=file.values,
        neutralised=file.neutralised,
    )


def _prediction(what: Recognised, names: Iterable[str], metadata: Mapping[str, str], path: Path) -> str:
    """What the UNet predicts, and what tells it."""
    if not what.parts or what.parts[0] not in ("UNet", "transformer"):
        return ""
    if what.family in (SD3, FLUX):
        return "flow, as all of its family"
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in ("epsilon", "v", "v_prediction"):
        return f"{'epsilon' if said == 'epsilon' else 'v'}, by modelspec.prediction_type"
    if "v_pred" in names:
        return "v, by the key v_pred"
    architecture = metadata.get("modelspec.architecture", "")
    for ending, found in (("v2-768-v", "v"), ("v2-512", "epsilon")):
        if architecture.endswith(ending):
            return f"{found}, by modelspec.architecture"
    if what.family == SD2:
        return "epsilon, as all for inpainting" if what.inpainting else _beside(path) or UNKNOWN_V
    return "epsilon, as usual for its family; nothing in the file says so" if what.family else ""


def _beside(path: Path) -> str:
    """What the `.yaml` of the same name says, as programs that read it take it; empty where there is none."""
    config = path.with_suffix(".yaml")
    if not config.is_file():
        return ""
    with explained(config), config.open("rb") as file:
        text = file.read(MOST_YAML)
    if b"LatentDiffusion" not in text:
        return ""
    velocity = re.search(rb"""^[ ]*parameterization:[ ]*["']?v["']?[ ]*(#.*)?\r?$""", text, re.MULTILINE)
    return f"{'v' if velocity else 'epsilon'}, by {shown(config.name)} beside it"


def _precisions(tensors: Iterable[TensorInfo]) -> tuple[Precision, ...]:
    found: dict[str, tuple[int, int]] = {}
    for info in tensors:
        count, total = found.get(info.dtype, (0, 0))
        found[info.dtype] = count + 1, total + info.nbytes
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return tuple(Precision(dtype=dtype, tensors=count, bytes=total) for dtype, (count, total) in ordered)


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}: named in the pickle, never run"


# Folders.

PART_NAMES = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CLASSES = {
    "UNet2DConditionModel": "UNet only",
    "SD3Transformer2DModel": "transformer only",
    "FluxTransformer2DModel": "transformer only",
    "AutoencoderKL": "VAE only",
    "CLIPTextModel": "text encoder only",
    "CLIPTextModelWithProjection": "text encoder only",
    "ControlNetModel": "ControlNet",
}


def _inspect_folder(folder: Path) -> Inspection:
    if (folder / "model_index.json").is_file():
        pipeline = shown(str(read_config(folder / "model_index.json").get("_class_name")))
        parts = {name: read_config(folder / name / "config.json") for name in PART_NAMES if (folder / name).is_dir()}
        core = parts.get("unet") or parts.get("transformer") or {}
        scheduler = folder / "scheduler" / "scheduler_config.json"
        said = read_config(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else ""
        role, folders = "checkpoint", [folder / name for name in parts]
    elif (folder / "config.json").is_file():
        core, parts, folders, said = read_config(folder / "config.json"), {}, [folder], ""
        pipeline = _class_of(core)
        role = CLASSES.get(pipeline, "")
    else:
        some = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"is no diffusers folder: it has no model_index.json, but {some}",
            where=folder,
            fix="Name the folder that has one, or a file.",
        )
    known = bool(core) and (role != "checkpoint" or _class_of(core) in CLASSES)
    channels = core.get("in_channels") if _class_of(core) == "UNet2DConditionModel" else 0
    what = Recognised(
        role=role if known and role else "not a model",
        family=_family(core),
        naming="diffusers",
        parts=tuple(parts),
        channels=channels if type(channels) is int else 0,
        detail=pipeline,
        why="" if known and role else f"it is a {pipeline}, which is not known here",
    )
    flow = what.family in (SD3, FLUX)
    prediction = "flow, as all of its family" if flow else f"{shown(str(said))}, by the scheduler" if said else ""
    files = [file for part in folders for file in sorted(part.glob("*.safetensors"))]
    tensors = [info for file in files for info in open_tensors(file).tensors.values()]
    return Inspection(
        path=folder,
        kind="diffusers folder",
        what=what,
        prediction=prediction,
        precisions=_precisions(tensors),
        metadata={},
        values={},
    )


def _class_of(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return shown(str(config.get("_class_name") or first))


def _family(core: Mapping[str, Any]) -> str:
    """The family of a UNet, a transformer or a ControlNet, from its configuration."""
    name = _class_of(core)
    if name == "FluxTransformer2DModel":
        return FLUX
    if name == "SD3Transformer2DModel":
        return SD3
    if name not in ("UNet2DConditionModel", "ControlNetModel"):
        return ""
    if core.get("addition_embed_type") == "text_time":
        return REFINER if core.get("cross_attention_dim") == 1280 else XL
    return SD2 if core.get("use_linear_projection") else SD1
