"""Resolution of names, paths and links to base models on this machine.

A model in one file becomes a diffusers folder in the cache, once.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdb.downloads.download import check_disk_space
from fastdb.downloads.fetch import fetch
from fastdb.downloads.model_cache import CONVERTED, came_from, locked, note_use, place, recall, remember
from fastdb.downloads.source import HubFile, HubRepository, LocalPath, Source, parse
from fastdb.errors import ModelError, TrainingError
from fastdb.formats.reader import open_tensors
from fastdb.models.base_identity import check_identity, configurations, remembered_sha256
from fastdb.models.diffusers_folder import BaseModel, fingerprint, open_base_model
from fastdb.models.family import FAMILIES
from fastdb.models.inspect import Inspection, inspect, model_layout
from fastdb.models.registry import (
    MINI,
    NO_BASE,
    KnownModel,
    check_choice,
    check_chosen,
    check_trainable,
    find_model,
    known_model,
)
from fastdb.reporting import SILENT, Note, Progress, Report
from fastdb.runtime.paths import expanded
from fastdb.sessions.session_yaml import FILE, BaseModelRecord
from fastdb.storage.atomic_write import explained, unfinished

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

PIPELINE = "StableDiffusionPipeline"
"""Only repositories of this pipeline are downloaded."""

MODEL_FILES = (".safetensors", ".ckpt")

SPARE = 1 << 20
"""Bytes for configurations and vocabularies."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    named: str
    """`mini`, or the path of the file or folder: the name by which a session finds it again."""
    folder: Path
    """In the diffusers layout: the folder itself, or the folder made of a single file."""
    source: str
    """The exact source of its download; empty for a person's own model."""


def resolve_base(base: str | Path, progress: Progress | None = None) -> Base:
    """Resolve a path, a link, a registry name, a Hub repository or file, or `mini` to a base model on this machine.

    Downloads a missing model; a single file is converted to a folder in the cache.

    Args:
        progress: called with done and total bytes; a total of 0 is unknown.

    Raises:
        ModelError: no such file, folder or name, or it cannot be downloaded or trained.
        StorageError: the disk is full.
    """
    if str(base) == MINI:
        return Base(MINI, Path(__file__).parent / MINI, "")
    if known := known_base(base):
        check_choice(known)
        # Folders first, which need no conversion.
        places = sorted(known.repositories, key=lambda place: not place.folder)
        first, *mirrors = (parse(place.name) if place.folder else HubFile(place.name, place.file) for place in places)
        return _downloaded(first, progress, mirrors)
    if not expanded(base).exists() and "/" not in str(base) and not str(base).endswith(MODEL_FILES):
        find_model(str(base))  # Raises an error with the nearest name.
    source = parse(base)
    if isinstance(source, LocalPath):
        fix = f"Give a Stable Diffusion 1.x as a file or a diffusers folder, or {MINI!r} to try things out."
        return _existing(source.path, fix, progress)
    return _downloaded(source, progress)


def base_record(base: str | Path, report: Report = SILENT) -> tuple[BaseModelRecord, int]:
    """Return the record of a base model, downloaded where needed, and its image size in pixels.

    Raises:
        ConfigError: no base model was chosen.
        ModelError: the base model is not available or cannot be used.
        StorageError: the disk is full.
    """
    check_chosen(base)
    if str(base) != MINI and (known_base(base) or not isinstance(parse(base), LocalPath)):
        report.note(Note("looking up", str(base)))
    with report.progress("base model", "B") as update:
        model = resolve_base(base, update)
    # Opened first, because its errors name the missing part.
    opened = open_base_model(model.folder)
    record = BaseModelRecord(
        folder=model.named,
        fingerprint=fingerprint(model.folder, remembered_sha256),
        source=model.source,
        configurations=configurations(model.folder),
    )
    return record, opened.sample_size


def known_base(base: str | Path) -> KnownModel | None:
    """Return the registry's entry of that name; None for an existing path and for unknown names."""
    return None if expanded(base).exists() else known_model(str(base))


def is_base(base: str | Path, record: BaseModelRecord) -> bool:
    """Return whether a name, path or link denotes a session's base model, without network access.

    Raises:
        ModelError: the text is no source of a model.
    """
    if str(base) in (record.folder, record.source) or MINI in (str(base), record.folder):
        return str(base) in (record.folder, record.source)
    recorded = parse(record.source) if record.source else parse(Path(record.folder))
    if known := known_base(base):
        names = {repository.name for repository in known.repositories}
        return isinstance(recorded, HubRepository | HubFile) and recorded.name in names
    asked = parse(base)
    if isinstance(asked, LocalPath):
        return asked.path == expanded(record.folder).absolute()
    if isinstance(asked, HubRepository | HubFile) and not asked.revision and type(asked) is type(recorded):
        return replace(recorded, revision="") == asked
    return recorded == asked


def ensure_base(session: Session, progress: Progress | None = None) -> BaseModel:
    """Open a session's base model; download and convert it first if it is not on this machine.

    Each verb calls this once and passes the opened model down. Weights are compared by hashes that this machine
    computed for files of the same size and times.

    Args:
        progress: called with done and total bytes; a total of 0 is unknown.

    Raises:
        ModelError: the base model is gone, cannot be downloaded or cannot be used.
        StorageError: the disk is full.
        TrainingError: its weights or configurations are not those that the session began with.
    """
    record = session.record.base_model
    # The current folder, which mini does not need, may have been deleted.
    path = Path(MINI) if record.folder == MINI else expanded(record.folder).absolute()
    if record.folder == MINI:
        base = resolve_base(MINI)
    elif record.source and not path.exists():
        base = _downloaded(parse(record.source), progress)
    else:
        fix = f"Put the base model of {session.name} back there, or write its new place into {session.path / FILE}."
        base = _existing(path, fix, progress)
    opened = open_base_model(base.folder)
    check_identity(record, base.folder)
    return opened


def check_present_base(session: Session) -> None:
    """Raise if a session's base model is on this machine but is not the one that it began with; download nothing.

    A fingerprint that is no SHA-256 was never computed from a model, so there is nothing to compare.

    Raises:
        ModelError: it cannot be used.
        StorageError: it cannot be read.
        TrainingError: its weights or configurations differ.
    """
    record = session.record.base_model
    present = record.folder == MINI or expanded(record.folder).absolute().exists()
    if present and re.fullmatch(r"[0-9a-f]{64}", record.fingerprint):
        ensure_base(session)


def is_replaced(session: Session) -> bool:
    """Return whether another model is in the place of a session's base model on this machine.

    Raises:
        ModelError: it cannot be used.
        StorageError: it cannot be read.
    """
    try:
        check_present_base(session)
    except TrainingError:
        return True
    return False


def _downloaded(source: Source, progress: Progress | None, mirrors: Sequence[Source] = ()) -> Base:
    return _base(fetch(source, mirrors=mirrors, only=PIPELINE, progress=progress), progress)


def _existing(path: Path, fix: str, progress: Progress | None) -> Base:
    if not path.exists():
        raise ModelError("there is no such file or folder", where=path, fix=fix)
    return _base(path, progress)


def _base(path: Path, progress: Progress | None) -> Base:
    note_use(path)
    return Base(str(path), ensure_folder(path, progress) if path.is_file() else path, came_from(path))


# Models that are one file.


def ensure_folder(file: Path, progress: Progress | None = None) -> Path:
    """Convert a model in one file to a diffusers folder in the cache, once.

    The folder has the precision of the file. Its name in the cache is made from the file's source, or from the path,
    size and time of a person's own file. Nothing is written for a file that is refused.

    Args:
        progress: called with done and total bytes of the conversion.

    Raises:
        ModelError: it is no whole model, or of a family that is not trained yet; or it cannot be read.
        StorageError: the disk has too little space for it.
    """
    found = inspect(file)
    _check_base_file(found)
    with explained(file):
        facts = file.stat()
    key = came_from(file) or f"{file.name} {file.absolute()} {facts.st_size} {facts.st_mtime_ns}"
    cached = place(f"{key} {CONVERTED}")
    with locked(cached):
        folder = cached / "model"
        if recall(cached) is None:
            _convert(found, folder, cached, progress)
    return folder


def ensure_configurations(file: Path, *, v_prediction: bool = False) -> Path:
    """Write configurations and vocabularies for a model in one file to the cache, once.

    Raises:
        ModelError: the file is no whole model, its sizes are not those of its family, or vocabularies are unavailable.
        StorageError: the folder cannot be written.
    """
    import torch

    from fastdb.models.diffusers_configs import lay_out
    from fastdb.models.export import plan_parts

    layout = model_layout(inspect(file))
    parts = plan_parts(layout, open_tensors(file), torch.float16)
    shapes = sorted((part, planned.entry.name, planned.entry.shape) for part, plan in parts.items() for planned in plan)
    kind = f"{layout.family}{' v' if v_prediction else ''} {hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]}"
    cached = place(f"configurations of {kind}")
    with locked(cached):
        folder = cached / "model"
        if recall(cached) is None:
            shutil.rmtree(folder, ignore_errors=True)
            lay_out(folder, FAMILIES[layout.family], parts, v_prediction=v_prediction)
            _remember(cached, folder, kind)
    return folder


def _check_base_file(found: Inspection) -> None:
    """Check that a file can be trained from.

    Raises:
        ModelError: it is no whole model, or of a family that is not trained yet.
    """
    role, reason = found.what.role, found.what.why
    if role != "checkpoint":
        why = NO_BASE.get(role) or f"it is no model, because {reason or f'it is a {role}'}"
        fix = "Give the base model itself, for example sd15."
        raise ModelError(f"cannot be trained as a base model: {why}", subject=found.path, fix=fix)
    if found.family is None:
        fix = "Give a Stable Diffusion 1.x, for example sd15."
        raise ModelError("cannot be trained: the family of its tensors is unknown", subject=found.path, fix=fix)
    check_trainable(found.family, found.path)


def _convert(found: Inspection, folder: Path, cached: Path, progress: Progress | None) -> None:
    """Convert a file to a folder in its own precision, or in fp32 if it has several."""
    # Loads torch.
    from fastdb.models.convert import convert

    names: dict[str, Literal["fp16", "bf16", "fp32"]] = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
    totals = [total for total in found.dtypes if total.dtype in names]
    weights = sum(total.bytes for total in totals)
    check_disk_space(cached, weights + SPARE, str(found.path))
    for leftover in (folder, *unfinished(folder)):
        shutil.rmtree(leftover, ignore_errors=True)

    def update(done: int, total: int) -> None:
        if progress is not None:
            progress(weights * done // total, weights)

    precision = names[totals[0].dtype] if len(totals) == 1 else "fp32"
    convert(found.path, folder, dtype=precision, progress=update)
    _remember(cached, folder, came_from(found.path) or str(found.path))


def _remember(cached: Path, folder: Path, source: str) -> None:
    paths = {path.relative_to(cached).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    remember(cached, source, paths)
