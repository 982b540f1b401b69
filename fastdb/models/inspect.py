"""Inspection of a model file or folder without loading its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_info import Scalar, TensorInfo, shown
from fastdb.models import family as families
from fastdb.models.detect import FLUX, REFINER, SD1, SD2, SD3, XL, Recognised, recognise
from fastdb.models.diffusers_folder import read_config, weight_file
from fastdb.models.family import Family
from fastdb.models.layouts.layout import Layout
from fastdb.models.layouts.tables import layout_of
from fastdb.models.prediction import UNKNOWN, Prediction, declared_prediction, probe_unet
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import explained

FAMILIES = {
    SD1: families.SD1,
    SD2: families.SD2,
    XL: families.SDXL,
    REFINER: families.SDXL,
    SD3: families.SD35,
    FLUX: families.FLUX,
}
"""Family by the family that the tensors show."""

LAID_OUT = (SD1, SD2, XL)
"""Families with a layout for whole models."""


@dataclass(frozen=True, kw_only=True)
class DtypeTotal:
    """The tensors of one data type in a file."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The contents of a model file or folder."""

    path: Path
    kind: str
    """`safetensors`, a form of torch.save, or `diffusers folder`."""
    what: Recognised
    family: Family | None = None
    """None if it is unknown."""
    prediction: Prediction | None = None
    """The prediction type of the UNet or transformer; None without either."""
    dtypes: tuple[DtypeTotal, ...] = ()
    """The largest total first."""
    ema: int = 0
    """Number of tensors that are a running average of the weights."""
    metadata: Mapping[str, str]
    values: Mapping[str, Scalar]
    """Plain values beside the tensors."""
    neutralised: tuple[str, ...] = ()
    """Names in a pickle that are no data; none of it ran."""


def inspect(path: Path) -> Inspection:
    """Inspect a model file or a folder in diffusers layout.

    Raises:
        ModelError: it is missing, cut short, damaged, a web page or no model file.
        StorageError: the disk fails, or reading is forbidden.
    """
    if path.is_dir():
        with explained(path):
            return _inspect_folder(path)
    file = open_tensors(path)
    shapes = {name: info.shape for name, info in file.tensors.items() if not name.startswith("optimizer_states.")}
    what = recognise(shapes)
    return Inspection(
        path=path,
        kind=file.kind,
        what=what,
        family=_family(what),
        prediction=declared_prediction(what, file.tensors, file.metadata, path),
        dtypes=_dtype_totals(file.tensors.values()),
        ema=sum(name.startswith("model_ema.") for name in file.tensors),
        metadata=file.metadata,
        values=file.values,
        neutralised=file.neutralised,
    )


def _family(what: Recognised) -> Family | None:
    return families.SD1_INPAINTING if what.inpainting and what.family == SD1 else FAMILIES.get(what.family)


def model_layout(inspection: Inspection) -> Layout:
    """Return the layout of a whole model.

    Raises:
        ModelError: it is no whole model, or its family has no layout.
    """
    what = inspection.what
    if what.role != "checkpoint":
        reason = f"it is not a model, because {what.why}" if what.why else f"it is a {what.role}, not a whole model"
        fix = "Give a file with UNet, autoencoder and text encoder."
        if what.role == "LoRA":
            fix = "To convert a LoRA, choose a form: --to lora-kohya or --to lora-diffusers."
        raise ModelError(f"cannot be converted: {reason}", subject=inspection.path, fix=fix)
    family = inspection.family
    if family is None or what.family not in LAID_OUT or what.channels != family.channels:
        name = f"{what.family or 'an unknown family'}{', inpainting' if what.inpainting else ''}"
        fix = f"Give a model of {', '.join(LAID_OUT[:-1])} or {LAID_OUT[-1]}."
        raise ModelError(f"cannot be converted: the layout of {name} is unknown", subject=inspection.path, fix=fix)
    return layout_of(family.name)


def prediction_of(inspection: Inspection, progress: Progress | None = None) -> Prediction:
    """Return the prediction type of a model with a UNet; probe the UNet if it is unknown.

    Raises:
        ModelError: the model has no UNet, or predicts neither noise nor v.
        StorageError: the disk fails, or reading is forbidden.
    """
    path, prediction = inspection.path, inspection.prediction
    if prediction is not None and not prediction.kind:
        return probe_unet(open_tensors(weight_file(path, "unet") if path.is_dir() else path), progress)
    if prediction is None or prediction.kind not in ("epsilon", "v_prediction"):
        reason = "it has no UNet" if prediction is None else f"it predicts {prediction.kind}, neither noise nor v"
        fix = "Give a whole Stable Diffusion 1.x, 2.x or SDXL."
        raise ModelError(f"cannot be used: {reason}", subject=path, fix=fix)
    return prediction


def _dtype_totals(tensors: Iterable[TensorInfo]) -> tuple[DtypeTotal, ...]:
    totals: dict[str, tuple[int, int]] = {}
    for info in tensors:
        count, size = totals.get(info.dtype, (0, 0))
        totals[info.dtype] = count + 1, size + info.nbytes
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return tuple(DtypeTotal(dtype=dtype, tensors=count, bytes=size) for dtype, (count, size) in ordered)


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
    scheduler: Mapping[str, Any] | None = None
    if (folder / "model_index.json").is_file():
        class_name = shown(str(read_config(folder / "model_index.json").get("_class_name")))
        parts = {name: read_config(folder / name / "config.json") for name in PART_NAMES if (folder / name).is_dir()}
        core = parts.get("unet") or parts.get("transformer") or {}
        config = folder / "scheduler" / "scheduler_config.json"
        scheduler = read_config(config) if config.is_file() else {"prediction_type": ""}
        role, folders = "checkpoint", [folder / name for name in parts]
    elif (folder / "config.json").is_file():
        core, parts, folders = read_config(folder / "config.json"), {}, [folder]
        class_name = _class_of(core)
        role = CLASSES.get(class_name, "")
    else:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"is no diffusers folder: it has no model_index.json; it contains {names}",
            subject=folder,
            fix="Give a folder with a model_index.json, or a file.",
        )
    known = bool(core) and bool(role) and (role != "checkpoint" or _class_of(core) in CLASSES)
    channels = core.get("in_channels") if _class_of(core) == "UNet2DConditionModel" else 0
    what = Recognised(
        role=role if known else "not a model",
        family=_folder_family(core),
        naming="diffusers",
        parts=tuple(parts),
        channels=channels if type(channels) is int else 0,
        detail=class_name,
        why="" if known else f"{class_name} is not supported",
    )
    files = [file for part in folders for file in sorted(part.glob("*.safetensors"))]
    return Inspection(
        path=folder,
        kind="diffusers folder",
        what=what,
        family=_family(what),
        prediction=_folder_prediction(what, scheduler),
        dtypes=_dtype_totals(info for file in files for info in open_tensors(file).tensors.values()),
        metadata={},
        values={},
    )


def _folder_prediction(what: Recognised, scheduler: Mapping[str, Any] | None) -> Prediction | None:
    if what.family in (SD3, FLUX):
        return Prediction("flow", source="family")
    if scheduler is None:
        return None
    kind = shown(str(scheduler.get("prediction_type", "epsilon")))
    zero_snr = scheduler.get("rescale_betas_zero_snr") is True
    return Prediction(kind, zero_snr, "scheduler") if kind else UNKNOWN


def _class_of(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return shown(str(config.get("_class_name") or first))


def _folder_family(core: Mapping[str, Any]) -> str:
    """Return the family of a UNet, a transformer or a ControlNet by its configuration."""
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
