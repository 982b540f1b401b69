"""Errors that users can fix, each reported as one line.

    FastDBError                 reported as one line, exit code 2
    ├── ConfigError             a setting is unknown or its value is invalid
    ├── SessionError            a session's name or folder cannot be used
    │   ├── SessionNotFound     no session of that name exists
    │   ├── SessionExists       a session of that name exists already
    │   └── SessionBusy         another process or machine is training this session
    ├── ImageError              a photo cannot be read or used
    ├── ModelError              a model file or folder cannot be read or used
    ├── StorageError            a disk is full, read-only or gone
    ├── CheckpointError         a checkpoint is incomplete or damaged
    ├── SetupError              packages that are needed cannot be installed
    └── TrainingError           training cannot start or continue

`console.boundary` and notebooks report these errors without a traceback. Any other exception is a bug.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

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
    "SetupError",
    "StorageError",
    "TrainingError",
]


_wording: Callable[[str], str] = str


def reword(wording: Callable[[str], str]) -> None:
    """Pass messages through a function before a notebook shows them."""
    global _wording
    _wording = wording


class FastDBError(Exception):
    """Error that a user can fix, with the remedy in its message.

    Args:
        what: the problem without a full stop: a predicate if there is a `subject`, else a clause.
        subject: the file, folder, session or value that the predicate is about.
        where: the file, folder, session or value in which the problem is.
        fix: the remedy, one imperative sentence.
    """

    def __init__(self, what: str, *, subject: object = None, where: object = None, fix: str = "") -> None:
        self.problem = f"{subject} {what}" if subject is not None else f"{where}: {what}" if where is not None else what
        """The message without the remedy."""
        super().__init__(f"{self.problem}. {fix}" if fix else self.problem)
        self.what, self.where, self.fix = what, subject if where is None else where, fix

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython 7.34 to 9 shows instead of a traceback."""
        return [f"error: {_wording(str(self))}"]


class ConfigError(FastDBError):
    """A setting is unknown or its value is invalid."""


class SessionError(FastDBError):
    """A session's name or folder cannot be used."""


class SessionNotFound(SessionError):
    """No session of that name exists."""


class SessionExists(SessionError):
    """A session of that name exists already."""


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


class SetupError(FastDBError):
    """Packages that are needed cannot be installed."""


class TrainingError(FastDBError):
    """Training cannot start or continue."""


def first_line(error: BaseException) -> str:
    """Return an error as one line, with its type unless it is an error that users can fix or one of the system."""
    if not isinstance(error, FastDBError) and is_out_of_memory(error):
        return out_of_memory(error, "", "").what
    lines = str(error).splitlines()
    if isinstance(error, FastDBError | OSError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


MORE_MEMORY = "End other programs, or use a machine with more memory, and run the same command again."
_SIGNS = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad.alloc|failed to map segment|"
    r"can't start new thread",
    re.I,
)
"""What torch, its libraries and the loader of shared libraries write in errors of other types."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of this machine or of its GPU is too small."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | OSError | ImportError) and bool(_SIGNS.search(str(error)))


def out_of_memory(error: BaseException, where: str, fix: str) -> TrainingError:
    """Return the error for users, with the size that was asked for if it is known."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA" in text:
        return TrainingError(f"the GPU is out of memory ({text[:120].splitlines()[0]})", where=where, fix=fix)
    asked = re.search(r"allocate (\d+) bytes", text)
    size = f" ({int(asked[1]) / 1e6:,.0f} MB more were needed)" if asked else ""
    return TrainingError(f"this machine has too little memory{size}", where=where, fix=fix)
