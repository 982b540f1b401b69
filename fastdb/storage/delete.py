"""Disk usage, and deletion that bypasses the trash of Google Drive, whose files still count."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fastdb.storage import MANIFEST


def bytes_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder, without following links.

    Files that vanish meanwhile count as 0.

    Raises:
        OSError: a folder cannot be read.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        return _below(path)
    except FileNotFoundError:
        return 0


def remove(path: Path, first: str = MANIFEST, mapped: Collection[int] | None = None) -> int:
    """Delete a file or folder, and return its bytes.

    Files are truncated first, because Google Drive keeps deleted files in its trash, where they still count. Hard links
    and files that a process has mapped are not truncated: other readers would lose their data. Of a link only the link
    is deleted.

    Args:
        first: name of the file in the folder to delete first, so that a folder whose deletion was cut off does not look
            complete.
        mapped: result of a recent `mapped_files`, to save time when deleting many files.

    Raises:
        OSError: it cannot be deleted; other files may be gone.
    """
    if not os.path.lexists(path):
        return 0
    mapped = mapped_files() if mapped is None else mapped
    if not path.is_dir() or path.is_symlink():
        return _remove_file(path, mapped)
    total = 0
    if (path / first).is_file():
        total += _remove_file(path / first, mapped)
    for folder, folders, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            total += _remove_file(Path(folder, name), mapped)
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink():
                inner.unlink()
            else:
                inner.rmdir()
    path.rmdir()
    return total


def _remove_file(path: Path, mapped: Collection[int]) -> int:
    facts = path.lstat()
    alone = facts.st_nlink == 1 and not path.is_symlink()
    if alone and facts.st_size and mapped_is_known and facts.st_ino not in mapped:
        # A file that cannot be truncated may still be deletable; unlink reports it if not.
        with suppress(OSError):
            os.truncate(path, 0)
    path.unlink()
    return facts.st_size


mapped_is_known = os.path.isdir("/proc/self")
"""Whether mapped files can be found. A process that reads a truncated mapping is killed by SIGBUS."""


def mapped_files() -> set[int]:
    """Return the inodes of all files that readable processes of this machine have mapped."""
    inodes: set[int] = set()
    for process in os.listdir("/proc") if mapped_is_known else ():
        if process.isdecimal():
            # The process has ended or belongs to another user.
            with suppress(OSError), open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as maps:
                inodes.update(int(line.split(maxsplit=5)[4]) for line in maps)
    return inodes


def _below(folder: Path | str) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    total += _below(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _raise(error: OSError) -> None:
    raise error
