"""Where a base model comes from, as a person names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb import console
from fastdb.downloads.fetch import fetch
from fastdb.downloads.model_cache import came_from, note_use
from fastdb.downloads.source import HubFile, LocalPath, Source, parse
from fastdb.errors import ModelError
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


def find_base(base: str | Path) -> Base:
    """A base model: a path, a link, a name of the registry or of a repository or file on the Hub, or `mini`.

    What is not on this machine is fetched; of a single file a folder is made, in the cache.

    Raises:
        ModelError: there is no such file, folder or name, or it cannot be fetched or trained from.
        StorageError: the disk has no room for it.
    """
    if str(base) == MINI:
        return Base(MINI, Path(__file__).parent / MINI, "")
    if known := known_base(base):
        check_choice(known)
        return _found(_fetched(*_places(known)))
    if not expanded(base).exists() and "/" not in str(base) and not str(base).endswith(MODEL_FILES):
        find_model(str(base))  # Raises, and tells the nearest.
    source = parse(base)
    if isinstance(source, LocalPath):
        fix = f"Give a Stable Diffusion 1.x as a file or a diffusers folder, or {MINI!r} to try things out."
        return _found(_existing(source.path, fix))
    return _found(_fetched(source))


def base_folder(base: str | Path) -> Path:
    """The diffusers folder of a base model as `find_base` finds it.

    Raises:
        ModelError, StorageError: see `find_base`.
    """
    return find_base(base).folder


def known_base(base: str | Path) -> KnownModel | None:
    """The entry of the registry that a person means; None for a path that is there, and for what it does not know."""
    return None if expanded(base).exists() else known_model(str(base))


def base_of(session: Session) -> Path:
    """The folder of a session's base model; where it is not on this machine, it is fetched from where it came from.

    Raises:
        ModelError: it is not there any more, or cannot be fetched.
        StorageError: the disk has no room for it.
    """
    record = session.record.base_model
    if record.folder == MINI:
        return base_folder(MINI)
    path = expanded(record.folder).absolute()
    if record.source and not path.exists():
        return _found(_fetched(parse(record.source))).folder
    fix = f"Put the base model of {session.name} back there, or write its new place into {session.path / FILE}."
    return _found(_existing(path, fix)).folder


def _places(model: KnownModel) -> list[Source]:
    """Where a model of the registry lies: folders first, which need no conversion, then single files."""
    folders = [parse(one.name) for one in model.repositories if one.folder]
    return folders + [HubFile(one.name, one.file) for one in model.repositories if not one.folder]


def _fetched(source: Source, *mirrors: Source) -> Path:
    with console.bar(str(source), "B") as update:
        return fetch(source, mirrors=mirrors, only=PIPELINE, progress=update)


def _found(path: Path) -> Base:
    note_use(path)
    return Base(str(path), folder_of(path) if path.is_file() else path, came_from(path))


def _existing(path: Path, fix: str) -> Path:
    if not path.exists():
        raise ModelError("there is no such file or folder", where=path, fix=fix)
    return path
