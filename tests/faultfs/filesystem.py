"""The operations of the mounted drive: those of the folder behind it, after each was counted and let through."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfusepy import Operations, overrides

from tests.faultfs.faults import LOST, SHORT, Faults
from tests.faultfs.upload import Uploader, Uploads

DRIVE_ID = "user.drive.id"
ATTRIBUTES = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
TIMES = ("st_atime", "st_mtime", "st_ctime")


def refused(number: int) -> OSError:
    """The error of that number."""
    return OSError(number, os.strerror(number))


class Drive(Operations):
    """A drive at a mount point; `disk` is the VM's copy of it and `cloud` what is left when the VM is lost."""

    use_ns = True

    def __init__(self, disk: Path, cloud: Path, uploads: Uploads) -> None:
        self.disk = disk
        self.faults = Faults()
        self.uploader = Uploader(disk, cloud, uploads)
        self.lost = False
        self.turn = threading.RLock()
        self.listings: dict[str, list[tuple[int, list[tuple[str, int, int]]]]] = {}

    def real(self, path: str) -> Path:
        """The file behind a path of the drive."""
        return self.disk / path[1:]

    def tick(self) -> None:
        """Let uploads go on to the present."""
        self.uploader.tick(self.faults.now)

    @contextmanager
    def operation(self, kind: str, path: str) -> Iterator[str]:
        """Count one operation, fail it if that is its turn, and let uploads go on after it."""
        with self.turn:
            if self.lost:
                raise refused(errno.ENOTCONN)
            struck = self.faults.strike(kind, path)
            if struck == LOST:
                self.lost = self.uploader.stopped = True
                raise refused(errno.ENOTCONN)
            if self.faults.stale:
                self._remember(os.path.dirname(path))
            try:
                yield struck
            finally:
                self.tick()

    def _remember(self, folder: str) -> None:
        known = self.listings.setdefault(folder, [])
        if not self.real(folder).is_dir():
            return
        present = self._list(folder)
        if not known or known[-1][1] != present:
            known.append((self.faults.now, present))

    def _list(self, path: str) -> list[tuple[str, int, int]]:
        entries = sorted(os.scandir(self.real(path)), key=lambda entry: entry.name)
        return [(entry.name, entry.stat().st_mode, entry.inode()) for entry in entries]

    # Folders

    @overrides(Operations)
    def opendir(self, path: str) -> int:
        with self.operation("open", path):
            return 0

    @overrides(Operations)
    def readdir(self, path: str, fh: int) -> Any:
        with self.operation("readdir", path):
            present = self._list(path)
            if self.faults.stale:
                self._remember(path)
                then = self.faults.now - self.faults.stale
                known = self.listings[path]
                # What was there before the first look is not known; the first look is the oldest there is.
                present = next((seen for at, seen in reversed(known) if at <= then), known[0][1])
            entries = [(name, {"st_mode": mode, "st_ino": inode}, 0) for name, mode, inode in present]
            return [(".", {"st_mode": stat.S_IFDIR}, 0), ("..", {"st_mode": stat.S_IFDIR}, 0), *entries]

    @overrides(Operations)
    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self.operation("fsync", path):
            return 0

    @overrides(Operations)
    def mkdir(self, path: str, mode: int) -> int:
        with self.operation("mkdir", path):
            os.mkdir(self.real(path), mode)
            self.uploader.changed(path)
        return 0

    @overrides(Operations)
    def rmdir(self, path: str) -> int:
        with self.operation("rmdir", path):
            os.rmdir(self.real(path))
            self.uploader.changed(path)
        return 0

    @overrides(Operations)
    def rename(self, old: str, new: str) -> int:
        with self.operation("rename", old):
            if self.faults.stale:
                self._remember(os.path.dirname(new))
            os.rename(self.real(old), self.real(new))
            self.uploader.renamed(old, new)
        return 0

    @overrides(Operations)
    def unlink(self, path: str) -> int:
        with self.operation("unlink", path):
            os.unlink(self.real(path))
            self.uploader.open.discard(path)
            self.uploader.changed(path)
        return 0

    # Files

    @overrides(Operations)
    def open(self, path: str, flags: int) -> int:
        with self.operation("open", path):
            if self.faults.read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                raise refused(errno.EROFS)
            file = os.open(self.real(path), flags)
            if flags & os.O_TRUNC:
                self.uploader.written(path)
            return file

    @overrides(Operations)
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        with self.operation("create", path):
            file = os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode)
            self.uploader.written(path)
            return file

    @overrides(Operations)
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.operation("read", path):
            return os.pread(fh, size, offset)

    @overrides(Operations)
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self.operation("write", path) as struck:
            if struck == SHORT:
                data = data[: max(1, len(data) // 2)]
            done = os.pwrite(fh, data[: self.faults.taken(len(data))], offset)
            self.uploader.written(path)
            return done

    @overrides(Operations)
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self.operation("truncate", path):
            os.truncate(self.real(path), length)
            self.uploader.written(path)
            if fh is None:
                self.uploader.closed(path)
        return 0

    @overrides(Operations)
    def flush(self, path: str, fh: int) -> int:
        try:
            with self.operation("flush", path):
                return 0
        finally:
            # The file is closed also where close() fails.
            if not self.lost:
                self.uploader.closed(path)
                self.tick()

    @overrides(Operations)
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        # Not passed on: the disk behind is never lost by halves, and real syncs would take most of the time.
        with self.operation("fsync", path):
            return 0

    @overrides(Operations)
    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    # Attributes

    @overrides(Operations)
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self.operation("getattr", path):
            facts = os.lstat(self.real(path))
            times = {name: getattr(facts, f"{name}_ns") for name in TIMES}
            return times | {name: getattr(facts, name) for name in ATTRIBUTES}

    @overrides(Operations)
    def chmod(self, path: str, mode: int) -> int:
        with self.operation("setattr", path):
            os.chmod(self.real(path), mode)
        return 0

    @overrides(Operations)
    def chown(self, path: str, uid: int, gid: int) -> int:
        with self.operation("setattr", path):
            os.chown(self.real(path), uid, gid)
        return 0

    @overrides(Operations)
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        with self.operation("setattr", path):
            os.utime(self.real(path), ns=times)
        return 0

    @overrides(Operations)
    def statfs(self, path: str) -> dict[str, int]:
        facts = os.statvfs(self.real(path))
        return {name: getattr(facts, name) for name in dir(facts) if name.startswith("f_") and name != "f_fsid"}

    @overrides(Operations)
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        if name != DRIVE_ID:
            raise refused(errno.ENODATA)
        with self.operation("xattr", path):
            return self.uploader.identity(path).encode()

    @overrides(Operations)
    def listxattr(self, path: str) -> list[str]:
        with self.operation("xattr", path):
            return [DRIVE_ID]

    # What Drive has not

    @overrides(Operations)
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        raise refused(errno.ENOTSUP)

    @overrides(Operations)
    def symlink(self, target: str, source: str) -> int:
        raise refused(errno.ENOTSUP)

    @overrides(Operations)
    def link(self, target: str, source: str) -> int:
        raise refused(errno.ENOTSUP)

    @overrides(Operations)
    def flock(self, path: str, fh: int, op: int) -> int:
        raise refused(errno.ENOTSUP)

    @overrides(Operations)
    def lock(self, path: str, fh: int, cmd: int, lock: Any) -> int:
        raise refused(errno.ENOTSUP)
