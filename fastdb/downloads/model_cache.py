"""Cache of downloaded models, a folder for each source."""

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
CONVERTED = "as a folder"
"""End of the key of a model in one file that was converted to a folder."""


@dataclass(frozen=True)
class Fetched:
    """The exact source of a complete folder and its files' sizes."""

    source: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class Entry:
    """A folder of the cache with its source, size and last use."""

    folder: Path
    source: str
    bytes: int
    used: datetime
    converted: bool = False
    """Whether it was converted from a file, which may be a person's own."""

    @property
    def title(self) -> str:
        """Name for a person."""
        return f"converted copy of {self.source}" if self.converted else self.source


def place(key: str, secret: str = "") -> Path:
    """Return the cache folder of a source.

    Args:
        key: the source's text.
        secret: the full link if `key` omits parts of it; only its hash is used.
    """
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"^https?://", "", key)).strip("-.")[-60:].strip("-.")
    return cache_folder() / "models" / f"{slug}-{hashlib.sha256((secret or key).encode()).hexdigest()[:12]}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder of the cache and lock it against other processes.

    Raises:
        StorageError: the folder cannot be created.
    """
    from filelock import FileLock

    make_folder(folder)
    with explained(folder), FileLock(_lock_of(folder)):
        yield


def remember(folder: Path, source: str, paths: Mapping[str, Path]) -> None:
    """Record that a folder is complete.

    Args:
        folder: a folder of the cache.
        source: the exact source.
        paths: the files by their path in the folder.

    Raises:
        StorageError: the record cannot be written.
    """
    with explained(folder):
        for leftover in unfinished(folder / FILE):
            leftover.unlink()
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    write_json(folder / FILE, {"source": source, "files": sizes})


def recall(folder: Path) -> Fetched | None:
    """Return the record of a complete folder, or None.

    Every file must have its recorded size.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        known = Fetched(str(data["source"]), {str(name): int(count) for name, count in data["files"].items()})
        whole = all((folder / name).stat().st_size == count for name, count in known.files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return known if whole else None


def came_from(path: Path) -> str:
    """Return the exact source of a cached folder or file, if any."""
    known = recall(path) or recall(path.parent)
    return known.source if known and cache_folder() in path.parents else ""


def entries() -> list[Entry]:
    """Return the models in the cache, least recently used first.

    Raises:
        OSError: the cache cannot be read.
    """
    folder, models = cache_folder() / "models", []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            known = recall(path)
            source = known.source if known else f"{path.name} (unfinished)"
            converted = re.search(rf"{CONVERTED.replace(' ', '-')}-[0-9a-f]+$", path.name) is not None
            used = datetime.fromtimestamp(_used(path), UTC)
            models.append(Entry(path, source, bytes_of(path), used, converted and known is not None))
    return sorted(models, key=lambda entry: entry.used)


def note_use(path: Path) -> None:
    """Record the use of a model, if it is in the cache."""
    models = cache_folder() / "models"
    if models in path.parents:
        # A read-only cache can still be used.
        with suppress(OSError):
            os.utime(models / path.relative_to(models).parts[0] / FILE)


def locked_now(folder: Path) -> bool:
    """Return whether another process is downloading into a folder of the cache."""
    from filelock import FileLock, Timeout

    try:
        with _unmarked(folder), FileLock(_lock_of(folder), timeout=0):
            return False
    except Timeout:
        return True


def remove_entry(folder: Path) -> int:
    """Delete a folder of the cache unless it is locked.

    Returns:
        The number of bytes freed.

    Raises:
        OSError: the folder cannot be deleted.
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
    """Return when a folder was last locked or recorded, in seconds.

    Each lock opens its file anew and so updates its time.
    """
    times = [path.stat().st_mtime for path in (folder / FILE, _lock_of(folder), folder) if path.exists()]
    return max(times, default=0.0)


@contextmanager
def _unmarked(folder: Path) -> Iterator[None]:
    """Restore a lock's time, since testing it is no use of the model."""
    lock = _lock_of(folder)
    before = lock.stat() if lock.exists() else None
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.utime(lock, ns=(before.st_atime_ns, before.st_mtime_ns))
