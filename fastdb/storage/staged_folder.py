"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastdb.storage.atomic_write import explained, flush
from fastdb.storage.delete import remove


@contextmanager
def staged_folder(path: Path, hidden: Path) -> Iterator[Path]:
    """Yield `hidden`, a new folder that is renamed to `path` if the block ends without an error.

    The block flushes what it writes. Anything `hidden` contains beforehand, and after an error, is removed.

    Args:
        hidden: a folder beside `path`.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
        StorageError: the disk is full, read-only, failing or gone; `path` is unchanged.
    """
    with explained(path):
        remove(hidden)
        hidden.mkdir()
        try:
            yield hidden
            hidden.rename(path)
        except BaseException as error:
            with suppress(OSError):
                remove(hidden)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise
        flush(path.parent)
