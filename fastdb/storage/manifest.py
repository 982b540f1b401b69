"""Manifests with the sizes and checksums of a folder's files, written last."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastdb.errors import StorageError
from fastdb.storage import MANIFEST
from fastdb.storage.atomic_write import explained, write_json

FORMAT = 1
LARGEST = 1 << 24
"""Bytes of a manifest; that of thousands of files has a tenth of it."""
GONE = (errno.ENOTCONN, errno.ESTALE, errno.ENODEV)
"""Errors of a disk that is gone, such as a mount whose server died."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, meant: Mapping[str, str] | None = None) -> None:
    """Read every file of `folder` back from the disk, and write the manifest.

    Args:
        meant: the expected SHA-256 of files by name.

    Raises:
        StorageError: a file cannot be read or does not match, or the manifest cannot be written.
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
                "the file does not match its checksum after writing",
                where=folder / name,
                fix="Check the disk and run the same command again; earlier checkpoints are unchanged.",
            )
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def faults(folder: Path, *, quick: bool = False) -> list[str]:
    """Return why `folder` does not match its manifest, as clauses; empty if it matches.

    Files that the manifest does not list are ignored.

    Args:
        quick: compare the checksums of JSON files only, and the sizes of others.

    Raises:
        StorageError: the disk is gone, so the state of the folder is unknown.
    """
    try:
        record = _read(folder)
        files = [(str(name), int(fact["bytes"]), str(fact["sha256"])) for name, fact in record["files"].items()]
    except FileNotFoundError:
        return ["it has no manifest, so it was never finished"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return [f"its manifest cannot be read ({type(error).__name__})"]
    if record.get("format") != FORMAT:
        return [f"its manifest has format {record.get('format')!r}; this version knows {FORMAT}"]
    read = [(name, size, digest if not quick or name.endswith(".json") else "") for name, size, digest in files]
    return [clause for entry in read if (clause := _fault(folder, *entry))]


def _read(folder: Path) -> Any:
    """Return a folder's manifest as plain data.

    Raises:
        OSError, ValueError: it cannot be read.
        StorageError: the disk is gone.
    """
    path = folder / MANIFEST
    with _gone_explained(folder):
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > LARGEST:
            raise ValueError("not a regular file, or too large")
        return json.loads(path.read_text(encoding="utf-8"))


def hashes_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256, in hex, of each file that the manifest of `folder` lists.

    Raises:
        StorageError: the manifest cannot be read now.
    """
    try:
        with explained(folder / MANIFEST):
            record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {str(name): str(fact["sha256"]) for name, fact in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"cannot be read ({type(error).__name__})",
            subject=folder / MANIFEST,
            fix="Check the disk and run the same command again.",
        ) from error


@contextmanager
def _gone_explained(path: Path) -> Iterator[None]:
    """Convert the errors of a disk that is gone, and pass others through.

    Raises:
        StorageError: the disk is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        with explained(path):
            raise


def _fault(folder: Path, name: str, size: int, digest: str) -> str:
    """Return why a file does not match its entry, as a clause; its bytes are read only if `digest` is not empty."""
    plain = PurePosixPath(name)
    if name != str(plain) or plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).anchor:
        return f"its manifest lists {name[:80]!a}, which is not a valid file name"
    path = folder / name
    try:
        with _gone_explained(path):
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                return f"{path.name} is not a regular file"
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"{path.name} is a link to another folder"
            if facts.st_size != size:
                return f"{path.name} has {facts.st_size} bytes instead of {size}"
            if digest and sha256(path) != digest:
                return f"{path.name} has changed since it was written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})"
    return ""
