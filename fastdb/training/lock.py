"""One trainer a session: a lock on this machine's own disk that the operating system lets go when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fastdb.errors import SessionBusy
from fastdb.runtime.paths import cache_folder, work_folder
from fastdb.storage.atomic_write import make_folder

_NAME = "training.lock"


@contextmanager
def training_lock(session: Path) -> Iterator[None]:
    """Hold the right to train a session.

    Raises:
        SessionBusy: another process on this machine holds it.
    """
    lock = _lock(session)
    try:
        # Whoever only asks whether it is held takes it for a moment.
        lock.acquire(timeout=1)
    except Timeout:
        raise SessionBusy(
            "another process is training it", where=session, fix=f"Follow that one with: fastdb train {session.name}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_training(session: Path) -> bool:
    """Whether a process on this machine holds the right to train a session."""
    return _is_held(_lock(session))


def any_training() -> bool:
    """Whether a process on this machine holds the right to train any session."""
    return any(_is_held(FileLock(lock)) for lock in (cache_folder() / "work").glob(f"*/{_NAME}"))


def _lock(session: Path) -> FileLock:
    folder = work_folder(session)
    make_folder(folder)
    return FileLock(folder / _NAME)


def _is_held(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
