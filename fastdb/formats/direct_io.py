"""A large file past the system's page cache, where the file system can: a tenth of the CPU time, and no memory filled.

Read this way, what comes is what lies on the disk and not what was still in memory. Where it cannot be (some network
and user-space file systems, systems without O_DIRECT), the same goes through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType

BLOCK = 2 << 20
"""Bytes at a time; a multiple of what any disk asks for, from memory that begins at a page."""

DIRECT = getattr(os, "O_DIRECT", 0)
_CANNOT = (errno.EINVAL, errno.ENOTSUP)


class _File:
    """An open file that goes by O_DIRECT as long as its file system takes that."""

    def __init__(self, path: Path, how: int) -> None:
        self._path, self._how, self._at = path, how | getattr(os, "O_CLOEXEC", 0), 0
        self.direct = bool(DIRECT)
        try:
            self.number = os.open(path, self._how | DIRECT, 0o666)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self.number, self.direct = os.open(path, self._how, 0o666), False

    def pass_on(self, act: Callable[[int], int]) -> int:
        """Read or write by `act`, without O_DIRECT where that is refused; the bytes that went through."""
        try:
            done = act(self.number)
        except OSError as error:
            if error.errno not in _CANNOT or not self.direct:
                raise
            self.through_the_cache()
            done = act(self.number)
        self._at += done
        return done

    def through_the_cache(self) -> None:
        """Do without O_DIRECT from now on. Opened anew: a file system in user space may have passed the flag on."""
        if self.direct:
            os.close(self.number)
            self.number, self.direct = os.open(self._path, self._how & ~(os.O_CREAT | os.O_TRUNC)), False
            os.lseek(self.number, self._at, os.SEEK_SET)
            if hasattr(os, "posix_fadvise"):
                # What the system still has in memory says nothing of what is on the disk.
                os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_DONTNEED)


class BlockWriter:
    """Writes a new file, or over an old one, in whole blocks; `block` is the memory they are made in."""

    def __init__(self, path: Path) -> None:
        self._file = _File(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
                self._file.through_the_cache()
            rest = self.block[done:count]
            done += self._file.pass_on(lambda file, rest=rest: os.write(file, rest))  # type: ignore[misc]

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The memory goes with its last view: an error on its way up may still hold one.
        os.close(self._file.number)


def blocks_of(path: Path) -> Generator[memoryview, None, None]:
    """The bytes of a file in order, each piece good until the next is asked for.

    Raises:
        OSError: the disk does not give them.
    """
    file, block = _File(path, os.O_RDONLY), memoryview(mmap.mmap(-1, BLOCK))
    if not file.direct and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.number, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        while count := file.pass_on(lambda number: os.readv(number, [block])):
            yield block[:count]
    finally:
        os.close(file.number)
