"""Where fetched models lie on this machine: a folder for each source, and what is in it, written last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastdb.runtime.places import cache_folder
from fastdb.storage.durable import explained, make_folder, unfinished, write_json

FILE = ".fetched.json"


@dataclass(frozen=True)
class Fetched:
    """What a folder of the cache holds: where it came from, exactly, and its files with their sizes in bytes."""

    source: str
    files: Mapping[str, int]


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
    with explained(folder), FileLock(folder.parent / f"{folder.name}.lock"):
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
