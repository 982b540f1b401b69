"""Which operation fails, and how: counted, logged, and decided before the disk is touched."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from dataclasses import dataclass

KINDS = (
    "open",  # of files and of folders
    "create",
    "read",
    "write",
    "flush",  # what a program sees as close()
    "fsync",  # of files and of folders
    "truncate",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "getattr",  # of every part of a path that is looked up, too
    "setattr",  # permissions, owner, times
    "readdir",
    "xattr",
)
ANY = "any"
CHANGES = ("create", "write", "truncate", "rename", "unlink", "mkdir", "rmdir", "setattr")
"""What a mount that is read-only refuses, beside opening to write."""
SHORT = "SHORT"
"""In place of an error: the write takes half of its bytes, and says so."""

LOST = "LOST"
"""In place of an error: the machine is lost. Nothing answers any more and nothing more is uploaded."""


@dataclass
class Fault:
    """The `nth` operation of a kind from now on fails with `error`; with `persistent` all after it do too.

    With `below` only operations on that path of the drive, and on what lies in it, are counted.
    """

    kind: str
    nth: int
    error: str
    persistent: bool
    below: str = "/"
    seen: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, ANY):
            raise ValueError(f"no such kind of operation: {self.kind}")
        if self.error not in (SHORT, LOST) and not hasattr(errno, self.error):
            raise ValueError(f"no such error: {self.error}")
        if self.nth < 1:
            raise ValueError("operations are counted from 1")

    def strikes(self, kind: str, path: str) -> bool:
        """Count an operation; whether it is to fail."""
        inside = path == self.below or path.startswith(f"{self.below.rstrip('/')}/")
        if self.kind not in (ANY, kind) or not inside:
            return False
        self.seen += 1
        return self.seen == self.nth or (self.persistent and self.seen > self.nth)


class Faults:
    """The script of what fails, and the record of what was asked."""

    def __init__(self) -> None:
        self.now = 0
        self.reset()
        self.heal()

    def reset(self) -> None:
        """Begin counting and logging anew."""
        self.counts: Counter[str] = Counter()
        self.log: list[tuple[str, str, str]] = []

    def heal(self) -> None:
        """Nothing fails any more, and the disk has room."""
        self.script: list[Fault] = []
        self.room: int | None = None
        self.stale = 0
        self.read_only = False
        self.away_for = 0.0

    @property
    def away_for(self) -> float:
        """Seconds for which nothing answers yet."""
        return max(0.0, self._back - time.monotonic())

    @away_for.setter
    def away_for(self, seconds: float) -> None:
        self._back = time.monotonic() + seconds

    def strike(self, kind: str, path: str) -> str:
        """Count and log an operation; raises its error, or tells `SHORT`, `LOST` or nothing."""
        self.now += 1
        self.counts[kind] += 1
        struck = [fault.error for fault in self.script if fault.strikes(kind, path)]
        error = struck[0] if struck else ""
        if self.away_for:
            error = "ENOTCONN"
        elif self.read_only and kind in CHANGES:
            error = "EROFS"
        self.log.append((kind, path, error))
        if error in ("", SHORT, LOST):
            return error
        number = getattr(errno, error)
        raise OSError(number, os.strerror(number), path)

    def taken(self, size: int) -> int:
        """How many of `size` bytes the disk still takes, at least one.

        What is removed gives nothing back, as Drive's trash counts too.
        """
        if self.room is None:
            return size
        if self.room <= 0 < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = min(size, self.room)
        self.room -= size
        return size
