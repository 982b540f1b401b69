"""What a folder holds, by size and hash, written last: without it a folder is not complete."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastdb.errors import StorageError
from fastdb.storage.durable import explained, write_json

MANIFEST = "MANIFEST.json"
FORMAT = 1
GONE = (errno.ENOTCONN, errno.ESTALE, errno.ENODEV)
"""What a disk answers that was taken away, such as a mount whose server died."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, meant: Mapping[str, str] | None = None) -> None:
    """Read every file of `folder` back from the disk and write their sizes and hashes beside them.

    `meant` maps file names to the SHA-256 of what should have been written.

    Raises:
        StorageError: a file cannot be read or differs from what was meant, or the manifest cannot be written.
    """
    with explained(folder):
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
    for name, digest in (meant or {}).items():
        if files.get(name, {}).get("sha256") != digest:
            raise StorageError(
                "what was read back is not what was written",
                where=folder / name,
                fix="Check the disk and run the same command again; earlier checkpoints are untouched.",
            )
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def faults(folder: Path) -> list[str]:
    """What is wrong with `folder` by its manifest, each as a clause; nothing wrong gives an empty list.

    Every byte is read again. Files the manifest does not name are no fault.

    Raises:
        StorageError: the disk is gone. That says nothing of what lies on it.
    """
    try:
        with _gone_explained(folder):
            record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [(str(name), int(fact["bytes"]), str(fact["sha256"])) for name, fact in record["files"].items()]
    except FileNotFoundError:
        return ["it has no manifest, so it was never finished"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return [f"its manifest cannot be read ({type(error).__name__})"]
    if record.get("format") != FORMAT:
        return [f"its manifest has format {record.get('format')!r}; this version knows {FORMAT}"]
    return [clause for name, size, digest in files if (clause := _fault(folder / name, size, digest))]


@contextmanager
def _gone_explained(path: Path) -> Iterator[None]:
    """Let a disk that was taken away be that, and not a fault of what was on it.

    Raises:
        StorageError: it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        with explained(path):
            raise


def _fault(path: Path, size: int, digest: str) -> str:
    try:
        with _gone_explained(path):
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
            if sha256(path) != digest:
                return f"{path.name} has changed since it was written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})"
    return ""
