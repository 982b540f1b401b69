"""Upload state of files in Google Drive's mount."""

from __future__ import annotations

import os
from pathlib import Path

DRIVE_ID = "user.drive.id"
LOCAL = b"local"
"""Start of the attribute while a file is not uploaded."""


def waits_for_upload(path: Path) -> bool:
    """Return whether a file, or any file below a folder, is not uploaded yet.

    Google Drive's mount uploads later and in no order; until then even flushed files are lost with the machine. On an
    ordinary disk the result is False.

    Raises:
        OSError: the folder cannot be listed.
    """
    if not hasattr(os, "getxattr"):
        return False
    if not path.is_dir():
        return _is_local(str(path))
    return any(
        _is_local(os.path.join(place, name))
        for place, _, names in os.walk(path, onerror=_raise)
        for name in (".", *names)
    )


def _is_local(path: str) -> bool:
    try:
        return os.getxattr(path, DRIVE_ID).startswith(LOCAL)
    except OSError:
        # The file system has no such attribute.
        return False


def _raise(error: OSError) -> None:
    raise error
