"""Whether files that lie in Google Drive's mount have left this machine."""

from __future__ import annotations

import os
from pathlib import Path

DRIVE_ID = "user.drive.id"
LOCAL = b"local"
"""How the attribute begins while a file is not uploaded."""


def waits_for_upload(path: Path) -> bool:
    """Whether a file, or one in a folder at any depth, is known to be on this machine alone as yet.

    Google Drive's mount uploads later and in no order; what was written, flushed and renamed is lost with the machine
    until then. Where nothing tells, as on an ordinary disk, no file is known to wait.

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
        # No such attribute here: nothing is known.
        return False


def _raise(error: OSError) -> None:
    raise error
