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
from fastdb.models import recognise
from fastdb.models.base_model import WEIGHTS, weight_file
from fastdb.models.configs import lay_out
from fastdb.models.export import ENDINGS, Precision, Progress, Steps, made, verify, write_model
from fastdb.models.family import FAMILIES
from fastdb.models.files.safetensors_writer import write_safetensors
from fastdb.models.files.tensor_file import open_tensors
from fastdb.models.inspect import Inspection, inspect
from fastdb.models.layouts.families import layout_of
from fastdb.models.layouts.mapping import Layout
from fastdb.models.plans import DTYPES, Planned, from_file, from_parts, opened, to_parts
from fastdb.storage.durable import explained, flush

LAYOUTS = {recognise.SD1: "sd1", recognise.SD2: "sd2", recognise.XL: "sdxl"}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A finished, verified conversion."""

    path: Path
    family: str
    tensors: int
    bytes: int
    sha256: str = ""
    """Of a file; a folder has none."""


def convert(
    source: Path,
    target: Path,
    *,
    dtype: Precision | None = None,
    averaged: bool = False,
    vae: Path | None = None,
    like: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the model at `source` to `target`.

    Args:
        source: a `.safetensors` or `.ckpt` in the original layout, or a diffusers folder.
        target: a `.safetensors` or `.ckpt` file, or else a folder in the diffusers layout, which must not be there yet.
        dtype: precision of every weight; None keeps what most of the source has.
        averaged: take the running averages (EMA) of the UNet's weights.
        vae: the file of an autoencoder to take in place of the source's own.
        like: for a folder: another diffusers folder of the same shape, whose configurations and vocabularies are taken;
            without it they are those of the family, the vocabularies fetched, or mini's for what is as small as mini.
        metadata: kept in a `.safetensors` header, beside what the source's header says.
        progress: called with (done, total).

    Raises:
        ModelError: the source is no whole model, or of a family without a layout; it holds what `dtype` cannot hold.
        StorageError: the target cannot be written.
    """
    found = inspect(source)
    layout = layout_of(family_of(found))
    precision = DTYPES[dtype] if dtype else _most(found)
    if target.suffix not in ENDINGS:
        if source.is_dir():
            raise ModelError("is a diffusers folder already", where=source, fix="Give the target a file's ending.")
        if vae is not None:
            fix = "Put it into the folder afterwards."
            raise ModelError("another autoencoder goes into a file", where=vae, fix=fix)
        return _to_folder(found, target, layout, precision, averaged, like, progress)
    if source.is_dir():
        if averaged:
            raise ModelError("a folder holds no running averages (EMA)", where=source, fix="Leave out --ema.")
        parts = opened({part: weight_file(source, part) for part in layout.parts})
        plan = from_parts(layout, parts, precision, vae=open_tensors(vae) if vae else None)
    else:
        plan = from_file(
            layout, open_tensors(source), precision, averaged=averaged, vae=open_tensors(vae) if vae else None
        )
    told = {**found.metadata, **_spec(found), **(metadata or {})}
    told.pop("format", None)
    done = write_model(plan, target, told, progress)
    return Converted(path=target, family=layout.title, tensors=done.tensors, bytes=done.bytes, sha256=done.sha256)


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


def _spec(found: Inspection) -> dict[str, str]:
    """What tells other programs how to use it, where the source's own header does not (ModelSpec 1.0)."""
    architectures = {
        recognise.SD1: "stable-diffusion-v1",
        recognise.SD2: "stable-diffusion-v2-768-v" if found.prediction.startswith("v") else "stable-diffusion-v2-512",
        recognise.XL: "stable-diffusion-xl-v1-base",
    }
    if found.what.family == recognise.SD2 and found.prediction.startswith("unknown"):
        return {}
    known = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architectures[found.what.family]}
    return {name: value for name, value in known.items() if name not in found.metadata}


def _to_folder(
    found: Inspection,
    target: Path,
    layout: Layout,
    precision: torch.dtype,
    averaged: bool,
    like: Path | None,
    progress: Progress | None,
) -> Converted:
    if target.exists():
        raise ModelError("is there already", where=target, fix="Choose another name, or remove it first.")
    parts = to_parts(layout, open_tensors(found.path), precision, averaged=averaged)
    beside = target.with_name(f".{target.name}.part")
    if beside.exists():
        shutil.rmtree(beside)
    tensors = sum(len(planned) for planned in parts.values())
    steps = Steps(progress, 2 * tensors)
    try:
        with explained(target):
            lay_out(beside, FAMILIES[layout.family], parts, like, v_prediction=found.prediction.startswith("v"))
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
