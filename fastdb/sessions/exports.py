"""Exported model files of sessions, found by the name of the file or of the session."""

from __future__ import annotations

from pathlib import Path

from fastdb.errors import ModelError
from fastdb.reporting import argument
from fastdb.runtime.paths import expanded, sessions_root
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained

SUFFIXES = (".safetensors", ".ckpt")


def locate_file(name: str | Path, root: str | Path | None = None) -> Path:
    """Return the path of a model file; a bare file name is also searched in the sessions' folders.

    A file or folder of that path comes first. The path is returned unchanged if nothing has the name.

    Raises:
        ModelError: several sessions have a file of that name.
    """
    path = expanded(name)
    if path.exists() or len(path.parts) != 1 or path.suffix not in SUFFIXES:
        return path
    base = sessions_root(root)
    with explained(base):
        folders = sorted(base.iterdir()) if base.is_dir() else []
        matches = [folder / path for folder in folders if (folder / FILE).is_file() and (folder / path).is_file()]
    if len(matches) > 1:
        raise ModelError(
            f"several sessions have a file of this name: {', '.join(map(str, matches))}",
            where=name,
            fix="Give the whole path of one.",
        )
    return matches[0] if matches else path


def existing_file(name: str | Path, root: str | Path | None = None) -> Path:
    """Return the path of a model file that exists; see `locate_file`.

    Raises:
        ModelError: it does not exist, or several sessions have a file of that name.
    """
    path = locate_file(name, root).absolute()
    if not path.is_file():
        raise ModelError("there is no such file", where=path, fix="Create it with: fastdb export SESSION")
    return path


def locate_models(name: str | Path, root: str | Path | None = None) -> list[Path]:
    """Return the path of a model file or folder; for a session's name or folder all its exports.

    Raises:
        ModelError: the session has no export, or several sessions have a file of that name.
    """
    path = locate_file(name, root)
    session = path if path.exists() or len(path.parts) != 1 else sessions_root(root) / path
    if not (session / FILE).is_file():
        return [path]
    if not (exports := Session.open(session).exports):
        raise ModelError(
            "has no exported file", subject=session.name, fix=f"Create it with: fastdb export {argument(session.name)}"
        )
    return list(exports)


def dependents(session: Session) -> list[Session]:
    """Return the other sessions beside it whose base model is one of its exports."""
    others = (other for other in Session.list(session.path.parent) if isinstance(other, Session))
    return [
        other
        for other in others
        if other.path != session.path and Path(other.record.base_model.folder).is_relative_to(session.path)
    ]
