"""Conversion of models between original files and diffusers folders.

Every tensor is cast and checked on its way, and the result is read back, as in an export.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models.detect import SD1, SD2, XL
from fastdb.models.diffusers_configs import lay_out
from fastdb.models.diffusers_folder import WEIGHTS, read_config, weight_file
from fastdb.models.export import DTYPES, ENDINGS, Precision, plan_from_file, plan_from_parts, plan_parts, write_model
from fastdb.models.family import FAMILIES
from fastdb.models.inspect import Inspection, inspect, model_layout, prediction_of
from fastdb.models.layouts.layout import Layout
from fastdb.models.prediction import write_yaml
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import explained, flush


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A finished, verified conversion."""

    path: Path
    family: str
    tensors: int
    bytes: int
    config: Path | None = None
    """The `.yaml` file beside a Stable Diffusion 2.x."""


def convert(
    source: Path,
    target: Path,
    *,
    dtype: Precision | None = None,
    averaged: bool = False,
    vae: Path | None = None,
    like: Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert the model at `source` to `target` and verify the result.

    Beside a Stable Diffusion 2.x its `.yaml` file is written.

    Args:
        source: a `.safetensors` or `.ckpt` in the original layout, or a diffusers folder.
        target: a `.safetensors` or `.ckpt` file, or else a folder in the diffusers layout, which must not exist.
        dtype: precision of every weight; None keeps the most frequent precision of the source.
        averaged: take the running averages (EMA) of the UNet's weights.
        vae: the file of an autoencoder that replaces that of the source.
        like: diffusers folder of the same shape to copy configurations and vocabularies from. None takes the
            configurations of the family and downloads the vocabularies, or copies those of mini for a model as small.
        prediction: prediction type of a Stable Diffusion 2.x; None takes that of the source, and probes the UNet if
            the source does not specify it, see `probe_unet`.
        progress: called with (done, total).

    Raises:
        ModelError: the source is no whole model, or its family has no layout; `dtype` cannot hold a number.
        StorageError: the target cannot be written.
    """
    found = inspect(source)
    layout = model_layout(found)
    precision = DTYPES[dtype] if dtype else _most_frequent(found)
    # Programs assume the prediction type of other families.
    kind = prediction or (prediction_of(found).kind if found.what.family == SD2 else None)
    if target.suffix not in ENDINGS:
        if source.is_dir():
            raise ModelError("is a diffusers folder already", subject=source, fix="Give the target a file's ending.")
        if vae is not None:
            fix = "Convert without --vae, then replace the vae folder."
            raise ModelError("cannot replace the autoencoder of a folder", subject=vae, fix=fix)
        return _to_folder(found, target, layout, precision, averaged, like, kind, progress)
    replacement = open_tensors(vae) if vae else None
    if source.is_dir():
        if averaged:
            raise ModelError("a folder has no running averages (EMA)", where=source, fix="Leave out --ema.")
        parts = {part: open_tensors(weight_file(source, part)) for part in layout.parts}
        plan = plan_from_parts(layout, parts, precision, vae=replacement)
    else:
        plan = plan_from_file(layout, open_tensors(source), precision, averaged=averaged, vae=replacement)
    header = {**found.metadata, **_model_spec(found, kind)}
    header.pop("format", None)
    done = write_model(plan, target, header, progress)
    shapes = {planned.entry.name: planned.entry.shape for planned in plan}
    config = write_yaml(target, shapes, kind) if kind and layout.family == "sd2" else None
    return Converted(path=target, family=layout.title, tensors=done.tensors, bytes=done.bytes, config=config)


def _most_frequent(found: Inspection) -> torch.dtype:
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    return next((names[total.dtype] for total in found.dtypes if total.dtype in names), torch.float32)


def _model_spec(found: Inspection, kind: str | None) -> dict[str, str]:
    """Return the header of ModelSpec 1.0; only that of a Stable Diffusion 2.x replaces the header of the source."""
    family, velocity = found.what.family, kind == "v_prediction"
    architectures = {
        SD1: "stable-diffusion-v1",
        SD2: f"stable-diffusion-v2-{'768-v' if velocity else '512'}",
        XL: "stable-diffusion-xl-v1-base",
    }
    spec = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architectures[family]}
    spec = {name: value for name, value in spec.items() if family == SD2 or name not in found.metadata}
    return spec | ({"modelspec.prediction_type": "v" if velocity else "epsilon"} if kind else {})


def _to_folder(
    found: Inspection,
    target: Path,
    layout: Layout,
    precision: torch.dtype,
    averaged: bool,
    like: Path | None,
    kind: str | None,
    progress: Progress | None,
) -> Converted:
    if target.exists():
        raise ModelError("exists already", subject=target, fix="Choose another name, or delete it first.")
    parts = plan_parts(layout, open_tensors(found.path), precision, averaged=averaged)
    if like is not None and kind is not None:
        _check_scheduler(like, kind)
    beside = target.with_name(f".{target.name}.part")
    if beside.exists():
        shutil.rmtree(beside)
    tensors = sum(len(plan) for plan in parts.values())
    kind = kind or (found.prediction.kind if found.prediction else "epsilon")
    written = size = 0

    def count(done: int, _: int) -> None:
        if progress is not None:
            progress(2 * written + done, 2 * tensors)

    try:
        with explained(target):
            lay_out(beside, FAMILIES[layout.family], parts, like, v_prediction=kind == "v_prediction")
            for part, plan in parts.items():
                done = write_model(plan, beside / part / f"{WEIGHTS[part]}.safetensors", {}, count)
                written, size = written + done.tensors, size + done.bytes
            beside.rename(target)
            flush(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return Converted(path=target, family=layout.title, tensors=tensors, bytes=size)


def _check_scheduler(like: Path, kind: str) -> None:
    """Check that the scheduler of a folder is for this prediction type."""
    config = like / "scheduler" / "scheduler_config.json"
    expected: Any = read_config(config).get("prediction_type", "epsilon") if config.is_file() else kind
    if expected != kind:
        what = f"its scheduler is for a UNet that predicts {expected}, and that of the model predicts {kind}"
        raise ModelError(what, where=like, fix="Give a folder of the same kind of model.")
