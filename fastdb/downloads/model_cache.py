"""Where fetched models lie on this machine: a folder for each source, and what is in it, written last."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fastdb.runtime.paths import cache_folder
from fastdb.storage.atomic_write import explained, make_folder, unfinished, write_json
from fastdb.storage.delete import bytes_of, remove

FILE = ".fetched.json"


@dataclass(frozen=True)
class Fetched:
    """What a folder of the cache holds: where it came from, exactly, and its files with their sizes in bytes."""

    source: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, what it was fetched from, its bytes, and when it was used last."""

    folder: Path
    source: str
    bytes: int
    used: datetime


def place(key: str, secret: str = "") -> Path:
    """The folder for a source; `secret` keeps apart what `key` alone does not, and cannot be read from the name."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"^https?://", "", key)).strip("-.")[-60:].strip("-.")
    return cache_folder() / "models" / f"{slug}-{hashlib.sha256((secret or key).encode()).hexdigest()[:12]}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and be the only process that fetches into it.

    Raises:
        StorageError: it cannot be made.
    """
    from filelock import FileLock

    make_folder(folder)
    with explained(folder), FileLock(_lock_of(folder)):
        yield


def remember(folder: Path, source: str, paths: Mapping[str, Path]) -> None:
    """Write down that a folder is complete.

    Raises:
        StorageError: it cannot be written.
    """
    with explained(folder):
        for rest in unfinished(folder / FILE):
            rest.unlink()
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    write_json(folder / FILE, {"source": source, "files": sizes})


def recall(folder: Path) -> Fetched | None:
    """What a folder holds, if it was completed and every file still has its size."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        known = Fetched(str(data["source"]), {str(name): int(count) for name, count in data["files"].items()})
        whole = all((folder / name).stat().st_size == count for name, count in known.files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return known if whole else None


def came_from(path: Path) -> str:
    """The exact source of a folder or file that was fetched; empty for one that is a person's own."""
    known = recall(path) or recall(path.parent)
    return known.source if known and cache_folder() in path.parents else ""


def entries() -> list[Entry]:
    """The models that lie in the cache, whole or in part, the least recently used first.

    Raises:
        OSError: the cache may not be read.
    """
    folder, found = cache_folder() / "models", []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            known = recall(path)
            source = known.source if known else f"{path.name} (unfinished)"
            found.append(Entry(path, source, bytes_of(path), datetime.fromtimestamp(_used(path), UTC)))
    return sorted(found, key=lambda entry: entry.used)


def note_use(path: Path) -> None:
    """Remember that a model of the cache is used now; a path that lies elsewhere is left alone."""
    models = cache_folder() / "models"
    if models in path.parents:
        # A cache that cannot be written can still be used.
        with suppress(OSError):
            os.utime(models / path.relative_to(models).parts[0] / FILE)


def locked_now(folder: Path) -> bool:
    """Whether another process is fetching into a folder of the cache."""
    from filelock import FileLock, Timeout

    try:
        with _unmarked(folder), FileLock(_lock_of(folder), timeout=0):
            return False
    except Timeout:
        return True


def remove_entry(folder: Path) -> int:
    """Remove a folder of the cache, unless another process is fetching into it; returns the bytes.

    Raises:
        OSError: it cannot be removed.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_of(folder), timeout=0):
            return remove(folder, FILE)
    except Timeout:
        return 0


def _lock_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.lock"


def _used(folder: Path) -> float:
    """When a folder was locked or noted last, in seconds; a lock's file is opened anew each time."""
    times = [path.stat().st_mtime for path in (folder / FILE, _lock_of(folder), folder) if path.exists()]
    return max(times, default=0.0)


@contextmanager
def _unmarked(folder: Path) -> Iterator[None]:
    """Within this a look at the lock does not count as a use."""
    lock = _lock_of(folder)
    before = lock.stat() if lock.exists() else None
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.utime(lock, ns=(before.st_atime_ns, before.st_mtime_ns))
