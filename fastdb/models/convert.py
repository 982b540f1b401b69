"""Any model in the layout that another program wants: a file into a file or a diffusers folder, a folder into a file.

Tensor by tensor, each cast and checked on its way, and what was written read back, as in an export.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.formats.safetensors_writer import write_safetensors
from fastdb.models import detect
from fastdb.models.diffusers_configs import lay_out
from fastdb.models.diffusers_folder import WEIGHTS, read_config, weight_file
from fastdb.models.export import ENDINGS, Precision, Progress, Steps, made, verify, write_model
from fastdb.models.family import FAMILIES
from fastdb.models.inspect import UNKNOWN_V, Inspection, inspect
from fastdb.models.layouts.families import layout_of
from fastdb.models.layouts.layout import Layout
from fastdb.models.ldm_yaml import write_config
from fastdb.models.prediction import Prediction, ask_unet, told
from fastdb.models.tensor_plan import DTYPES, Planned, from_file, from_parts, opened, to_parts
from fastdb.storage.atomic_write import explained, flush

LAYOUTS = {detect.SD1: "sd1", detect.SD2: "sd2", detect.XL: "sdxl"}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A finished, verified conversion."""

    path: Path
    family: str
    tensors: int
    bytes: int
    sha256: str = ""
    """Of a file; a folder has none."""
    config: Path | None = None
    """The `.yaml` beside a file of SD 2.x."""


def convert(
    source: Path,
    target: Path,
    *,
    dtype: Precision | None = None,
    averaged: bool = False,
    vae: Path | None = None,
    like: Path | None = None,
    prediction: Prediction | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the model at `source` to `target`; beside a file of SD 2.x a `.yaml` says what it predicts.

    Args:
        source: a `.safetensors` or `.ckpt` in the original layout, or a diffusers folder.
        target: a `.safetensors` or `.ckpt` file, or else a folder in the diffusers layout, which must not be there yet.
        dtype: precision of every weight; None keeps what most of the source has.
        averaged: take the running averages (EMA) of the UNet's weights.
        vae: the file of an autoencoder to take in place of the source's own.
        like: for a folder: another diffusers folder of the same shape, whose configurations and vocabularies are taken;
            without it they are those of the family, the vocabularies fetched, or mini's for what is as small as mini.
        prediction: what the UNet of an SD 2.x predicts; None takes what the source says, and where it says nothing asks
            its UNet, see `ask_unet`.
        metadata: kept in a `.safetensors` header, beside what the source's header says.
        progress: called with (done, total).

    Raises:
        ModelError: the source is no whole model, or of a family without a layout; it holds what `dtype` cannot hold.
        StorageError: the target cannot be written.
    """
    found = inspect(source)
    layout = layout_of(family_of(found))
    precision = DTYPES[dtype] if dtype else _most(found)
    kind = prediction or _predicts(found)
    if target.suffix not in ENDINGS:
        if source.is_dir():
            raise ModelError("is a diffusers folder already", where=source, fix="Give the target a file's ending.")
        if vae is not None:
            fix = "Put it into the folder afterwards."
            raise ModelError("another autoencoder goes into a file", where=vae, fix=fix)
        return _to_folder(found, target, layout, precision, averaged, like, kind, progress)
    if source.is_dir():
        if averaged:
            raise ModelError("a folder holds no running averages (EMA)", where=source, fix="Leave out --ema.")
        parts = opened({part: weight_file(source, part) for part in layout.parts})
        plan = from_parts(layout, parts, precision, vae=open_tensors(vae) if vae else None)
    else:
        plan = from_file(
            layout, open_tensors(source), precision, averaged=averaged, vae=open_tensors(vae) if vae else None
        )
    header = {**found.metadata, **_spec(found, kind), **(metadata or {})}
    header.pop("format", None)
    done = write_model(plan, target, header, progress)
    config = None
    if kind and layout.family == "sd2":
        config = write_config(target, {one.entry.name: one.entry.shape for one in plan}, kind)
    return Converted(
        path=target, family=layout.title, tensors=done.tensors, bytes=done.bytes, sha256=done.sha256, config=config
    )


def family_of(found: Inspection) -> str:
    """The name of the layout of a whole model.

    Raises:
        ModelError: it is no whole model, or there is no layout for its family; the message says what it is.
    """
    what = found.what
    if what.role != "checkpoint":
        is_a = f"is no model, because {what.why}" if what.why else f"is a {what.role}, not a whole model"
        raise ModelError(is_a, where=found.path, fix="Give a file with UNet, autoencoder and text encoder.")
    name = LAYOUTS.get(what.family)
    if name is None or what.channels not in (4, 9) or (what.channels == 9 and name != "sd1"):
        kind = f"{what.family or 'a family that is not known'}{', inpainting' if what.inpainting else ''}"
        raise ModelError(
            f"is of {kind}, whose layout is not known here", where=found.path, fix=f"Known: {', '.join(LAYOUTS)}."
        )
    return "sd1-inpainting" if what.inpainting else name


def _most(found: Inspection) -> torch.dtype:
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    return next((names[one.dtype] for one in found.precisions if one.dtype in names), torch.float32)


def _predicts(found: Inspection) -> Prediction | None:
    """What the UNet of an SD 2.x predicts; of other families None, since their readers take it for granted."""
    if found.what.family != detect.SD2:
        return None
    if found.prediction in ("", UNKNOWN_V):
        return ask_unet(weight_file(found.path, "unet") if found.path.is_dir() else found.path)[0]
    return told(found.path, found.prediction)[0]


def _spec(found: Inspection, kind: Prediction | None) -> dict[str, str]:
    """What tells other programs how to use it (ModelSpec 1.0): of an SD 2.x what was found, else what is not said."""
    family, velocity = found.what.family, kind == "v_prediction"
    architectures = {
        detect.SD1: "stable-diffusion-v1",
        detect.SD2: f"stable-diffusion-v2-{'768-v' if velocity else '512'}",
        detect.XL: "stable-diffusion-xl-v1-base",
    }
    known = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architectures[family]}
    said = {name: value for name, value in known.items() if family == detect.SD2 or name not in found.metadata}
    return said | ({"modelspec.prediction_type": "v" if velocity else "epsilon"} if kind else {})


def _to_folder(
    found: Inspection,
    target: Path,
    layout: Layout,
    precision: torch.dtype,
    averaged: bool,
    like: Path | None,
    kind: Prediction | None,
    progress: Progress | None,
) -> Converted:
    if target.exists():
        raise ModelError("is there already", where=target, fix="Choose another name, or remove it first.")
    parts = to_parts(layout, open_tensors(found.path), precision, averaged=averaged)
    if like is not None:
        _check_scheduler(like, kind)
    beside = target.with_name(f".{target.name}.part")
    if beside.exists():
        shutil.rmtree(beside)
    tensors = sum(len(planned) for planned in parts.values())
    steps = Steps(progress, 2 * tensors)
    velocity = kind == "v_prediction" if kind else found.prediction.startswith("v")
    try:
        with explained(target):
            lay_out(beside, FAMILIES[layout.family], parts, like, v_prediction=velocity)
            size = sum(_write_part(beside / part, part, planned, steps) for part, planned in parts.items())
            beside.rename(target)
            flush(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return Converted(path=target, family=layout.title, tensors=tensors, bytes=size)


def _write_part(folder: Path, part: str, planned: list[Planned], steps: Steps) -> int:
    """Write and verify the weights of a part; returns their bytes."""
    file = folder / f"{WEIGHTS[part]}.safetensors"
    written = write_safetensors(file, [one.entry for one in planned], made(planned, steps), {"format": "pt"})
    flush(file)
    verify(file, planned, written, steps)
    return written.bytes


def _check_scheduler(like: Path, kind: Prediction | None) -> None:
    """The folder's scheduler, where it has one, takes the UNet's answers for what they are."""
    config = like / "scheduler" / "scheduler_config.json"
    if kind is None or not config.is_file():
        return
    said = read_config(config).get("prediction_type", "epsilon")
    if said != kind:
        what = f"its scheduler is for a UNet that predicts {said}, and that of the model predicts {kind}"
        raise ModelError(what, where=like, fix="Name a folder of the same kind of model.")
