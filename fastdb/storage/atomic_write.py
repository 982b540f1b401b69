"""Atomic writes by writing a temporary file, flushing and renaming it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdb.errors import StorageError

TEMPORARY = ".part"
"""Suffix of files that are being written."""

_UNFIT = (errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EFBIG, errno.EBUSY)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read or write `path` into one clear line.

    That something is missing, or is there already, keeps its own exception: only the caller knows what it means.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone, or cannot take such a name.
    """
    try:
        yield
    except OSError as error:
        # A name of ours that is only there while we write would puzzle whoever reads it.
        where = path if error.filename is None or str(error.filename).endswith(TEMPORARY) else error.filename
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "the disk is full; what was there before is untouched",
                where=where,
                fix="Free some space and run the same command again.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                "cannot be written: it is read-only for you",
                where=where,
                fix="Make the folder writable, or choose another with --root.",
            ) from error
        if error.errno in (errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT):
            raise StorageError(
                f"the disk does not answer ({error.strerror})",
                where=where,
                fix="Mount it again and run the same command again.",
            ) from error
        if error.errno in _UNFIT:
            raise StorageError(
                f"cannot be used ({error.strerror})", where=where, fix="Choose another name or folder."
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        StorageError: it cannot be made, or something else has its name.
    """
    try:
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError("is not a folder", where=error.filename, fix="Choose another folder.") from error
    except FileNotFoundError as error:
        raise StorageError("no folder can be made there", where=path, fix="Choose another folder.") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on leaving without an error it takes `path`'s place.

    The bytes are flushed to the disk before the rename, and the folder after it. After an error the
    half-written file is removed and `path` is as it was.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with explained(path):
            try:
                yield beside
                flush(beside)
                os.replace(beside, path)
                flush(path.parent)
            finally:
                beside.unlink(missing_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.parent.is_dir():
            raise
        raise StorageError(
            "there is no such folder, or no longer", where=path.parent, fix="Put it back, or choose another."
        ) from error


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one that `writing` makes; a killed process leaves it behind."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def unfinished(path: Path) -> list[Path]:
    """Return the temporary files of `path` that killed processes left; only valid while nobody is writing it."""
    names = (name for name in os.listdir(path.parent) if name.startswith(f".{path.name}."))
    return [path.with_name(name) for name in names if is_temporary(name)]


def flush(path: Path) -> None:
    """Ask the operating system to put a file or folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a folder and say so; that is no failed write.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all.

    Raises:
        StorageError: see `writing`.
    """
    with writing(path) as beside:
        beside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all.

    Raises:
        StorageError: see `writing`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, whole or not at all.

    Raises:
        StorageError: see `writing`.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
