"""Lock for changes of `session.yaml` by processes of this machine, such as a trainer and an export beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fastdb.errors import StorageError
from fastdb.storage.atomic_write import make_folder

_LOCK = "record.lock"
_LONGEST = 30.0
"""Seconds to wait for another process. One that takes longer hangs on the session's disk, and will not write soon."""


@contextmanager
def record_lock(work_folder: Path) -> Iterator[None]:
    """Hold the lock while the record is read, changed and written.

    A lock that cannot be had does not prevent the change: it is on this machine's disk, which may be full.
    """
    lock = FileLock(work_folder / _LOCK)
    with suppress(OSError, StorageError, Timeout):
        make_folder(work_folder)
        lock.acquire(timeout=_LONGEST)
    try:
        yield
    finally:
        lock.release()
