"""Everything a person can get wrong, or a machine can do to them.

    FastDBError                 shown as one line, exit code 2
    ├── ConfigError             a setting is unknown, of the wrong kind or out of bounds
    ├── SessionError            a session's name or folder cannot be used
    │   ├── SessionNotFound     no session of that name lies where we looked
    │   ├── SessionExists       a new session would hide an old one
    │   └── SessionBusy         another process or machine is training this session
    ├── ImageError              a photo cannot be read or used
    ├── ModelError              a model file or folder cannot be read or used
    ├── StorageError            a disk is full, read-only or gone
    ├── CheckpointError         a checkpoint is incomplete or damaged
    └── TrainingError           training cannot start or go on

Raised low, shown once: `console.boundary` turns any of them into a line, and a notebook does the same.
Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FastDBError",
    "ImageError",
    "ModelError",
    "SessionBusy",
    "SessionError",
    "SessionExists",
    "SessionNotFound",
    "StorageError",
    "TrainingError",
]


class FastDBError(Exception):
    """What happened, to which file or value, and what to do now; its text is that one line.

    Args:
        what: what happened, a clause without a full stop.
        where: the file, folder or value it happened to.
        fix: what to do now, one sentence.
    """

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        line = f"{where}: {what}" if where is not None else what
        super().__init__(f"{line}. {fix}" if fix else line)
        self.what, self.where, self.fix = what, where, fix

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback (IPython asks for it, 7.34 to 9)."""
        return [f"error: {self}"]


class ConfigError(FastDBError):
    """A setting is unknown, of the wrong kind or out of bounds."""


class SessionError(FastDBError):
    """A session's name or folder cannot be used."""


class SessionNotFound(SessionError):
    """No session of that name lies where we looked."""


class SessionExists(SessionError):
    """A new session would hide an old one."""


class SessionBusy(SessionError):
    """Another process or machine is training this session."""


class ImageError(FastDBError):
    """A photo cannot be read or used."""


class ModelError(FastDBError):
    """A model file or folder cannot be read or used."""


class StorageError(FastDBError):
    """A disk is full, read-only or gone."""


class CheckpointError(FastDBError):
    """A checkpoint is incomplete or damaged."""


class TrainingError(FastDBError):
    """Training cannot start or go on."""
