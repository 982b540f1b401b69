"""Claims on checkpoints, which prevent other processes of this machine from deleting them.

A claim is a shared lock on the checkpoint's manifest. It needs no space on a disk that may be full, several processes
may hold one, and the system releases it when its holder dies.

A verb that reads checkpoints runs in `claims_kept`: each checkpoint that it finds valid stays until its end.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from fastdb.storage import MANIFEST


@contextmanager
def claimed(checkpoint: Path) -> Iterator[None]:
    """Keep the processes of this machine from deleting a checkpoint while it is read.

    A folder without a manifest is no checkpoint and cannot be claimed, which is no error.

    Raises:
        FileNotFoundError: the checkpoint is gone, or is being deleted.
        OSError: the disk does not answer.
    """
    descriptor = _claim(checkpoint)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


_kept: ContextVar[ExitStack | None] = ContextVar("kept", default=None)


@contextmanager
def claims_kept() -> Iterator[None]:
    """Claim every checkpoint that `claim` is called for in this context, until its end."""
    with ExitStack() as stack:
        token = _kept.set(stack)
        try:
            yield
        finally:
            _kept.reset(token)


def claim(checkpoint: Path) -> bool:
    """Claim a checkpoint that will be read, if this is in `claims_kept`; return whether it still exists.

    A disk that does not answer counts as an existing checkpoint: reading it reports the error.
    """
    stack = _kept.get()
    try:
        if stack is None:
            (checkpoint / MANIFEST).stat()
        else:
            stack.enter_context(claimed(checkpoint))
    except FileNotFoundError:
        return checkpoint.is_dir()
    except OSError:
        return True
    return True


@contextmanager
def unclaimed(checkpoint: Path) -> Iterator[None]:
    """Keep other processes of this machine from claiming a checkpoint that is deleted.

    Raises:
        BlockingIOError: a process reads it.
        OSError: the disk does not answer.
    """
    descriptor = _opened(checkpoint)
    try:
        if descriptor is not None and not _lock(descriptor, fcntl.LOCK_EX):
            raise BlockingIOError(errno.EBUSY, "another process is reading it", str(checkpoint))
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _claim(checkpoint: Path) -> int | None:
    """Return a descriptor that holds a claim until it is closed; None for a folder without a manifest."""
    descriptor = _opened(checkpoint)
    if descriptor is None:
        if not checkpoint.is_dir():
            raise _gone(checkpoint)
        return None
    try:
        # Deletion locks the manifest, then renames the folder, so the name shows which came first.
        if _lock(descriptor, fcntl.LOCK_SH) and os.path.samestat(os.fstat(descriptor), (checkpoint / MANIFEST).stat()):
            return descriptor
        raise _gone(checkpoint)
    except BaseException:
        os.close(descriptor)
        raise


def _opened(checkpoint: Path) -> int | None:
    with suppress(FileNotFoundError):
        return os.open(checkpoint / MANIFEST, os.O_RDONLY)
    return None


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock was granted, or this file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise
    return True


def _gone(checkpoint: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "it was deleted meanwhile", str(checkpoint))
