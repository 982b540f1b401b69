"""A large file past the system's page cache, where the file system can: a tenth of the CPU time, and no memory filled.

Read this way, what comes is what lies on the disk and not what was still in memory. Where it cannot be (some network
and user-space file systems, systems without O_DIRECT), the same goes through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType

BLOCK = 2 << 20
"""Bytes at a time; a multiple of what any disk asks for, from memory that begins at a page."""

DIRECT = getattr(os, "O_DIRECT", 0)
_CANNOT = (errno.EINVAL, errno.ENOTSUP)


class BlockWriter:
    """Writes a new file, or over an old one, in whole blocks; `block` is the memory they are made in."""

    def __init__(self, path: Path) -> None:
        self._file = _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.block = memoryview(mmap.mmap(-1, BLOCK))

    def put(self, count: int) -> None:
        """Write the first `count` bytes of the block; fewer than all only at the end.

        Raises:
            OSError: the disk is full, failing or gone.
        """
        done = 0
        while done < count:
            # A part of a block, the end or the rest of a write that was cut short, is not for O_DIRECT.
            if done or count < BLOCK:
                _through_the_cache(self._file)
            try:
                done += os.write(self._file, self.block[done:count])
            except OSError as error:
                if error.errno not in _CANNOT or not _through_the_cache(self._file):
                    raise

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The memory goes with its last view: an error on its way up may still hold one.
        os.close(self._file)


def blocks_of(path: Path) -> Generator[memoryview, None, None]:
    """The bytes of a file in order, each piece good until the next is asked for.

    Raises:
        OSError: the disk does not give them.
    """
    file = _opened(path, os.O_RDONLY)
    try:
        block = memoryview(mmap.mmap(-1, BLOCK))
        while count := _read(file, block):
            yield block[:count]
    finally:
        os.close(file)


def _read(file: int, block: memoryview) -> int:
    try:
        return os.readv(file, [block])
    except OSError as error:
        if error.errno not in _CANNOT or not _through_the_cache(file):
            raise
        return os.readv(file, [block])


def _opened(path: Path, how: int) -> int:
    how |= getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, how | DIRECT, 0o666)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return os.open(path, how, 0o666)


def _through_the_cache(file: int) -> bool:
    """Do without O_DIRECT from now on; says whether that changes anything."""
    if not DIRECT:
        return False
    import fcntl

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    if not flags & DIRECT:
        return False
    if hasattr(os, "posix_fadvise"):
        # What the system still has in memory says nothing of what is on the disk.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~DIRECT)
    return True
