"""Where a base model comes from, as a person names it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.errors import ModelError
from fastdb.sessions.record import FILE

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

MINI = "mini"
"""The small model of a drawn world that ships in the package; `mini/` in the repository makes it."""


def base_folder(base: str | Path) -> Path:
    """The folder of a base model: a path, or `mini`, wherever the package lies.

    Raises:
        ModelError: there is no such folder.
    """
    return _existing(base, f"Give a Stable Diffusion 1.x in the diffusers layout, or {MINI!r} to try things out.")


def base_of(session: Session) -> Path:
    """The folder of a session's base model.

    Raises:
        ModelError: it is not there any more.
    """
    return _existing(
        session.record.base_model.folder,
        f"Put the base model of {session.name} back there, or write its new place into {session.path / FILE}.",
    )


def _existing(base: str | Path, fix: str) -> Path:
    if str(base) == MINI:
        return Path(__file__).parent / MINI
    folder = Path(base).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=folder, fix=fix)
    return folder
