"""A base model that is one file, as the diffusers folder that training and drawing go from: made once, in the cache."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from fastdb import console
from fastdb.downloads.download import check_room
from fastdb.downloads.model_cache import came_from, locked, place, recall, remember
from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.models import detect
from fastdb.models.family import FAMILIES, FLUX, SD35, SDXL, Family
from fastdb.models.inspect import Inspection, inspect
from fastdb.models.registry import NO_BASE, check_trainable
from fastdb.storage.atomic_write import explained, unfinished

OTHERS = {detect.XL: SDXL, detect.REFINER: SDXL, detect.SD3: SD35, detect.FLUX: FLUX}
"""Families by what a file is recognised as, where that is not their title."""

SPARE = 1 << 20
"""Bytes for configurations and vocabularies."""


def folder_of(file: Path) -> Path:
    """The diffusers folder of a model in one file, with the file's own weights in its own precision.

    Nothing of what is refused is written. The folder is kept in the cache under the file's source or, of a file of
    one's own, its path, size and time.

    Raises:
        ModelError: it is no whole model, or of a family that is not trained yet; or it cannot be read.
        StorageError: the disk has no room for it.
    """
    found = inspect(file)
    check_base_file(found)
    with explained(file):
        facts = file.stat()
    key = came_from(file) or f"{file.name} {file.absolute()} {facts.st_size} {facts.st_mtime_ns}"
    cached = place(f"{key} as a folder")
    with locked(cached):
        folder = cached / "model"
        if recall(cached) is None:
            _convert(found, folder, cached)
    return folder


def configurations_of(file: Path, *, v_prediction: bool = False) -> Path:
    """A diffusers folder without weights for a model in one file, in the cache: configurations and vocabularies.

    Raises:
        ModelError: the file is no whole model, its sizes are not those of its family, or vocabularies cannot be had.
        StorageError: the folder cannot be written.
    """
    # Need torch, which what is here already does not.
    import torch

    from fastdb.models.convert import family_of as layout_name
    from fastdb.models.diffusers_configs import lay_out
    from fastdb.models.layouts.families import layout_of
    from fastdb.models.tensor_plan import to_parts

    layout = layout_of(layout_name(inspect(file)))
    parts = to_parts(layout, open_tensors(file), torch.float16)
    shapes = sorted((part, one.entry.name, one.entry.shape) for part, planned in parts.items() for one in planned)
    kind = f"{layout.family}{' v' if v_prediction else ''} {hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]}"
    cached = place(f"configurations of {kind}")
    with locked(cached):
        folder = cached / "model"
        if recall(cached) is None:
            shutil.rmtree(folder, ignore_errors=True)
            lay_out(folder, FAMILIES[layout.family], parts, v_prediction=v_prediction)
            _remember(cached, folder, kind)
    return folder


def check_base_file(found: Inspection) -> None:
    """Refuse a file or folder that cannot be trained from.

    Raises:
        ModelError: it is no whole model, or of a family that is not trained yet.
    """
    what = found.what
    if what.role != "checkpoint":
        why = NO_BASE.get(what.role) or f"it is no model, because {what.why or 'it is a ' + what.role}"
        raise ModelError(
            f"cannot be trained as a base model: {why}",
            where=found.path,
            fix="Give the base model itself, for example sd15.",
        )
    family = family_of(found)
    if family is None:
        raise ModelError(
            "is of a family that its tensors do not tell, so it cannot be trained",
            where=found.path,
            fix="Give a Stable Diffusion 1.x, for example sd15.",
        )
    check_trainable(family, found.path)


def family_of(found: Inspection) -> Family | None:
    """The family of what was inspected; None where it is not known."""
    what = found.what
    if what.inpainting and what.family == detect.SD1:
        return FAMILIES["sd1-inpainting"]
    return OTHERS.get(what.family) or next((one for one in FAMILIES.values() if one.title == what.family), None)


def _convert(found: Inspection, folder: Path, cached: Path) -> None:
    """Make the folder; the name of the whole is given last."""
    # Needs torch, which what is here already does not.
    from fastdb.models.convert import convert

    weights = sum(one.bytes for one in found.precisions if one.dtype in WIDTHS)
    check_room(cached, weights + SPARE, str(found.path))
    for rest in (folder, *unfinished(folder)):
        shutil.rmtree(rest, ignore_errors=True)
    console.say(f"{found.path.name} is one file: making a folder of its parts, once")
    with console.bar("parts", "tensor") as update:
        convert(found.path, folder, dtype=_widest(found), progress=update)
    _remember(cached, folder, came_from(found.path) or str(found.path))


def _remember(cached: Path, folder: Path, source: str) -> None:
    paths = {path.relative_to(cached).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    remember(cached, source, paths)


WIDTHS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def _widest(found: Inspection) -> Any:
    """A precision that loses nothing of the file."""
    there = {WIDTHS[one.dtype] for one in found.precisions if one.dtype in WIDTHS}
    return there.pop() if len(there) == 1 else "fp32"
