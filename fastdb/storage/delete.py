"""What files take, and giving it back for real: on Google Drive what is deleted goes to the trash and still counts."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fastdb.storage.manifest import MANIFEST


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, as their sizes say; links are not followed.

    Nothing is opened. What vanishes meanwhile counts nothing.

    Raises:
        OSError: a folder may not be read.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        return _below(path)
    except FileNotFoundError:
        return 0


def remove(path: Path, first: str = MANIFEST, mapped: Collection[int] | None = None) -> int:
    """Remove a file, or a folder with all below it, and give its space back; returns the bytes.

    Each file is cut to nothing before it is deleted, so that a trash keeps nothing of it. The file `first` of a folder
    goes before the others: what is left of a removal that was cut off is never taken for whole. A link goes and what
    it points to stays; a file with a second name, or one that a process has mapped, is deleted without being cut:
    whoever reads it by the other name or through the map would lose it.

    Args:
        first: name of the file of a folder that goes first.
        mapped: what `mapped_files` gave a moment ago, for whoever removes many.

    Raises:
        OSError: it cannot be removed; what was removed before is gone.
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
        # What forbids cutting may still let it be deleted; what forbids both is told by the deletion.
        with suppress(OSError):
            os.truncate(path, 0)
    path.unlink()
    return facts.st_size


mapped_is_known = os.path.isdir("/proc/self")
"""Whether this system tells which files are mapped. To cut one that is would end the process that reads it."""


def mapped_files() -> set[int]:
    """The inodes of the files that processes of this machine have mapped, as far as they may be looked at."""
    found: set[int] = set()
    for process in os.listdir("/proc") if mapped_is_known else ():
        if process.isdecimal():
            # It has ended meanwhile, or is somebody else's.
            with suppress(OSError), open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as maps:
                found.update(int(line.split(maxsplit=5)[4]) for line in maps)
    return found


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
