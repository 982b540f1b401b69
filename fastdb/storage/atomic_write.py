"""Write beside, flush, rename: a reader finds the old file or the new one, never half of one."""

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
"""Ending of a file that is being written; one that lies about is the rest of a dead process."""

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


def unfinished(path: Path) -> list[Path]:
    """What processes left beside `path` that were killed in `writing` it; for whoever knows that none is at it now."""
    beside = (one for one in path.parent.iterdir() if one.name.startswith(f".{path.name}."))
    return [one for one in beside if one.name.endswith(TEMPORARY)]


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
