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

_UNFIT = (errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EBUSY)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert errors of the operating system about `path` into `StorageError`.

    FileNotFoundError and FileExistsError pass through, because only the caller knows their meaning.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone, or does not accept the name.
    """
    try:
        yield
    except OSError as error:
        # A temporary name would mean nothing to the reader.
        where = path if error.filename is None or str(error.filename).endswith(TEMPORARY) else error.filename
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "the disk is full; existing files are unchanged",
                where=where,
                fix="Free some space and run the same command again.",
            ) from error
        if error.errno == errno.EROFS:
            raise StorageError(
                "the disk is read-only",
                where=where,
                fix="Mount it with write access, or choose another folder with --root.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StorageError(
                "permission denied",
                where=where,
                fix="Make the folder writable, or choose another folder with --root.",
            ) from error
        if error.errno in (errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT):
            raise StorageError(
                f"the disk does not answer ({error.strerror})",
                where=where,
                fix="Mount it again and run the same command again.",
            ) from error
        if error.errno == errno.EFBIG:
            raise StorageError(
                "the disk or a limit of this system does not allow a file of this size; existing files are unchanged",
                where=where,
                fix="Use a disk with exFAT, NTFS or ext4 (FAT32 ends at 4 GB), another folder with --root, or "
                "ulimit -f unlimited, and run the same command again.",
            ) from error
        if error.errno in _UNFIT:
            raise StorageError(
                f"cannot be used ({error.strerror})", subject=where, fix="Choose another name or folder."
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist.

    Raises:
        StorageError: it cannot be created, or a file has its name.
    """
    try:
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError("is not a folder", subject=error.filename, fix="Choose another folder.") from error
    except FileNotFoundError as error:
        raise StorageError("a folder cannot be created here", where=path, fix="Choose another folder.") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends without an error.

    The file is flushed to the disk before the rename, and the folder after it. After an error the temporary file is
    removed and `path` is unchanged.

    Raises:
        StorageError: the disk is full, read-only, forbidden, failing or gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with explained(path):
            try:
                yield temporary
                flush(temporary)
                os.replace(temporary, path)
                flush(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.parent.is_dir():
            raise
        raise StorageError(
            "there is no such folder", where=path.parent, fix="Restore it, or choose another folder."
        ) from error


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one that `writing` makes; a killed process leaves it behind."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def unfinished(path: Path) -> list[Path]:
    """Return the temporary files of `path` that killed processes left; only valid while nobody is writing it."""
    names = (name for name in os.listdir(path.parent) if name.startswith(f".{path.name}."))
    return [path.with_name(name) for name in names if is_temporary(name)]


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems reject fsync of a folder; the write has succeeded.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically.

    Raises:
        StorageError: see `writing`.
    """
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8 atomically.

    Raises:
        StorageError: see `writing`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON atomically.

    Raises:
        StorageError: see `writing`.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
