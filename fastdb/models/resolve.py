"""Resolve a base model from what a person or a session names; download and convert it where needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.downloads.download import Progress
from fastdb.downloads.fetch import fetch
from fastdb.downloads.model_cache import came_from, note_use
from fastdb.downloads.source import HubFile, LocalPath, Source, parse
from fastdb.errors import ModelError
from fastdb.models.diffusers_folder import BaseModel, open_base_model
from fastdb.models.folder_from_file import folder_of
from fastdb.models.registry import KnownModel, check_choice, find_model, known_model
from fastdb.runtime.paths import expanded
from fastdb.sessions.session_yaml import FILE

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

MINI = "mini"
"""The small model of a drawn world that ships in the package; `mini/` in the repository makes it."""

PIPELINE = "StableDiffusionPipeline"
"""What a repository has to hold for its weights to be fetched."""

MODEL_FILES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    named: str
    """`mini`, or the path of the file or folder: how a session finds it again."""
    folder: Path
    """In the diffusers layout: the folder itself, or what was made of a single file."""
    source: str
    """Where it was fetched from, exactly; empty for a person's own."""


def resolve_base(base: str | Path, progress: Progress | None = None) -> Base:
    """Resolve a path, a link, a registry name, a Hub repository or file, or `mini` to a base model on this machine.

    Downloads what is missing; a single file is converted to a folder in the cache.

    Args:
        progress: called with downloaded and total bytes; a total of 0 is unknown.

    Raises:
        ModelError: no such file, folder or name, or it cannot be downloaded or trained.
        StorageError: the disk is full.
    """
    if str(base) == MINI:
        return Base(MINI, Path(__file__).parent / MINI, "")
    if known := known_base(base):
        check_choice(known)
        first, *mirrors = _places(known)
        return _found(_fetched(first, progress, mirrors))
    if not expanded(base).exists() and "/" not in str(base) and not str(base).endswith(MODEL_FILES):
        find_model(str(base))  # Raises, and tells the nearest.
    source = parse(base)
    if isinstance(source, LocalPath):
        fix = f"Give a Stable Diffusion 1.x as a file or a diffusers folder, or {MINI!r} to try things out."
        return _found(_existing(source.path, fix))
    return _found(_fetched(source, progress))


def known_base(base: str | Path) -> KnownModel | None:
    """The entry of the registry that a person means; None for a path that is there, and for what it does not know."""
    return None if expanded(base).exists() else known_model(str(base))


def ensure_base(session: Session, progress: Progress | None = None) -> BaseModel:
    """Open a session's base model, after downloading and converting it where it is not on this machine.

    Each verb calls this once and passes the opened model down.

    Args:
        progress: called with downloaded and total bytes; a total of 0 is unknown.

    Raises:
        ModelError: the base model is gone, cannot be downloaded or cannot be used.
        StorageError: the disk is full.
    """
    return open_base_model(_session_base(session, progress).folder)


def _session_base(session: Session, progress: Progress | None) -> Base:
    record = session.record.base_model
    if record.folder == MINI:
        return resolve_base(MINI)
    path = expanded(record.folder).absolute()
    if record.source and not path.exists():
        return _found(_fetched(parse(record.source), progress))
    fix = f"Put the base model of {session.name} back there, or write its new place into {session.path / FILE}."
    return _found(_existing(path, fix))


def _places(model: KnownModel) -> list[Source]:
    """Where a model of the registry lies: folders first, which need no conversion, then single files."""
    folders = [parse(one.name) for one in model.repositories if one.folder]
    return folders + [HubFile(one.name, one.file) for one in model.repositories if not one.folder]


def _fetched(source: Source, progress: Progress | None, mirrors: Sequence[Source] = ()) -> Path:
    return fetch(source, mirrors=mirrors, only=PIPELINE, progress=progress)


def _found(path: Path) -> Base:
    note_use(path)
    return Base(str(path), folder_of(path) if path.is_file() else path, came_from(path))


def _existing(path: Path, fix: str) -> Path:
    if not path.exists():
        raise ModelError("there is no such file or folder", where=path, fix=fix)
    return path
