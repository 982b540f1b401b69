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


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read or write `path` into one clear line.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone.
    """
    try:
        yield
    except OSError as error:
        where = path if error.filename is None else error.filename
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
        if error.errno in (errno.EIO, errno.ENOTCONN, errno.ESTALE):
            raise StorageError(
                f"the disk does not answer ({error.strerror})",
                where=where,
                fix="Mount it again and run the same command again.",
            ) from error
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on leaving without an error it takes `path`'s place.

    The bytes are flushed to the disk before the rename, and the folder after it. After an error the
    half-written file is removed and `path` is as it was.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    with explained(path):
        try:
            yield beside
            flush(beside)
            os.replace(beside, path)
            flush(path.parent)
        finally:
            beside.unlink(missing_ok=True)


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
