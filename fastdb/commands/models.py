"""Verbs about model files: inspect, convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdb.errors import ConfigError, ModelError
from fastdb.models.registry import MINI
from fastdb.models.resolve import known_base, resolve_base
from fastdb.reporting import SILENT, Note, Report, counted, format_bytes
from fastdb.runtime.paths import expanded
from fastdb.sessions.exports import locate_file

if TYPE_CHECKING:
    from fastdb.models.inspect import Inspection


def inspect(
    file: str | Path, *, probe: bool = False, root: str | Path | None = None, report: Report = SILENT
) -> Inspection:
    """Return what a model file, or a folder in diffusers layout, contains; no weights are loaded and no code runs.

    Args:
        file: a path, or the file name of a session's export.
        probe: run the UNet of a Stable Diffusion 2.x once (1.7 GB) if nothing else gives its prediction type.

    Raises:
        ModelError: it cannot be read.
        StorageError: the disk fails, or permission is denied.
    """
    from fastdb.models.inspect import inspect as inspect_model
    from fastdb.models.inspect import prediction_of

    inspection = inspect_model(located(file, root))
    if probe and inspection.prediction is not None and not inspection.prediction.kind:
        with report.progress("probe", "tensor") as update:
            inspection = replace(inspection, prediction=prediction_of(inspection, update))
    return inspection


def convert(
    source: str | Path,
    target: str | Path,
    *,
    precision: Literal["fp16", "bf16", "fp32"] | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
    like: str | Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] | None = None,
    render: bool = False,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Path:
    """Convert a model to another layout, verified by reading it back.

    Args:
        source: a `.safetensors`, a `.ckpt` or a diffusers folder, or the file name of a session's export.
        target: its suffix chooses the layout; without a suffix it is a diffusers folder.
        precision: that of the source by default.
        ema: take the running averages of the weights.
        vae: a file with another autoencoder.
        like: a diffusers folder whose configurations a new folder takes.
        prediction: the prediction type of an SD 2.x; by default that of the source, or else its UNet is probed. A
            `.yaml` of the same name beside a file of that family records it, and replaces an existing one.
        render: generate an image with source and result and compare them (SD 1.x and 2.x); from file to file this
            needs `like`.

    Raises:
        ConfigError: the target is the source.
        ModelError: the source is incomplete, or its layout is unknown; a folder needs `like`; the images differ by
            more than the precision explains, and the result is kept for inspection.
        StorageError: the target cannot be written.
    """
    from fastdb.models.convert import convert as convert_model

    source, target = located(source, root).absolute(), expanded(target).absolute()
    if source.exists() and target.exists() and target.samefile(source):
        raise ConfigError("is both source and target", subject=target, fix="Give the target another name.")
    if render:
        from fastdb.inference.compare import check_render, render_folder

        folder = render_folder(source, like=_absolute(like), vae=_absolute(vae), prediction=prediction)
    with report.progress(target.name, "tensor") as update:
        converted = convert_model(
            source,
            target,
            dtype=precision,
            averaged=ema,
            vae=_absolute(vae),
            like=_absolute(like),
            prediction=prediction,
            progress=update,
        )
    details = f"{converted.family}, {counted(converted.tensors, 'tensor')}, {format_bytes(converted.bytes)}"
    report.note(Note("model verified", str(converted.path), details))
    if converted.config:
        report.note(Note("prediction recorded", str(converted.config)))
    if render:
        check_render(source, converted.path, folder, averaged=ema, report=report)
    return converted.path


def located(model: str | Path, root: str | Path | None) -> Path:
    """Return the path of a model file or folder, of a session's export, or of `mini`.

    Raises:
        ModelError: it is the name of a base model that may have to be downloaded first.
    """
    if str(model) == MINI:
        return resolve_base(MINI).folder  # As everywhere; a folder of this name is `./mini`.
    path = locate_file(model, root)
    if path.exists():
        return path
    if known := known_base(model):
        raise ModelError(
            "is the name of a base model, not a file",
            subject=known.name,
            fix="Give the path of its file or folder; fastdb space lists the models on this machine.",
        )
    return path


def _absolute(path: str | Path | None) -> Path | None:
    return None if path is None else expanded(path).absolute()
