"""Where a base model comes from, as a person names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb import console
from fastdb.errors import ModelError
from fastdb.models.fetch.fetch import fetch
from fastdb.models.fetch.named import LocalPath, Source, parse
from fastdb.models.registry import KnownModel, check_choice, known_model
from fastdb.runtime.places import expanded
from fastdb.sessions.record import FILE

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

MINI = "mini"
"""The small model of a drawn world that ships in the package; `mini/` in the repository makes it."""

PIPELINE = "StableDiffusionPipeline"
"""What a repository has to hold for its weights to be fetched."""


def base_folder(base: str | Path) -> Path:
    """The folder of a base model: a path, a name of the registry or a repository on the Hub, fetched, or `mini`.

    Raises:
        ModelError: there is no such folder, or it cannot be fetched or trained from.
        StorageError: the disk has no room for it.
    """
    if str(base) == MINI:
        return Path(__file__).parent / MINI
    if model := known_base(base):
        check_choice(model)
        first, *mirrors = (repository.name for repository in model.repositories if repository.folder)
        return _folder(_fetched(parse(first), mirrors))
    source = parse(base)
    if isinstance(source, LocalPath):
        fix = f"Give a Stable Diffusion 1.x in the diffusers layout, or {MINI!r} to try things out."
        return _folder(_existing(source.path, fix))
    return _folder(_fetched(source))


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
    if record.source and not path.is_dir():
        return _folder(_fetched(parse(record.source)))
    return _existing(
        path, f"Put the base model of {session.name} back there, or write its new place into {session.path / FILE}."
    )


def _fetched(source: Source, mirrors: Sequence[str] = ()) -> Path:
    with console.bar(str(source), "B") as update:
        return fetch(source, mirrors=mirrors, only=PIPELINE, progress=update)


def _folder(path: Path) -> Path:
    if path.is_file():
        raise ModelError(
            "is a single file, and training goes from a folder in the diffusers layout only, for now",
            where=path,
            fix="Name a Hub repository that has a model_index.json, or such a folder.",
        )
    return path


def _existing(path: Path, fix: str) -> Path:
    if not path.exists():
        raise ModelError("there is no such folder", where=path, fix=fix)
    return path
