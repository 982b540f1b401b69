"""Whether files that lie in Google Drive's mount have left this machine."""

from __future__ import annotations

import os
from pathlib import Path

DRIVE_ID = "user.drive.id"
LOCAL = b"local"
"""How the attribute begins while a file is not uploaded."""


def waits_for_upload(folder: Path) -> bool:
    """Whether a file of `folder`, at any depth, is known to be on this machine alone as yet.

    Google Drive's mount uploads later and in no order; what was written, flushed and renamed is lost with the machine
    until then. Where nothing tells, as on an ordinary disk, no file is known to wait.

    Raises:
        OSError: the folder cannot be listed.
    """
    if not hasattr(os, "getxattr"):
        return False
    for place, _, names in os.walk(folder, onerror=_raise):
        for name in (".", *names):
            try:
                if os.getxattr(os.path.join(place, name), DRIVE_ID).startswith(LOCAL):
                    return True
            except OSError:
                # No such attribute here: nothing is known.
                continue
    return False


def _raise(error: OSError) -> None:
    raise error
