"""Google Drive in Colab: mount it when it is not there yet, and let go of it without losing what is on its way."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from fastdb.errors import StorageError
from fastdb.runtime import paths

COLAB = Path("/var/colab/hostname")
"""Google's own machines have it. The `google.colab` package alone proves nothing: it can be installed anywhere."""

ELSEWHERE = ("KAGGLE_KERNEL_RUN_TYPE", "VERTEX_PRODUCT")
"""Set on hosts whose images hold `google.colab` too, and where it cannot do its work."""


def colab(part: str) -> ModuleType | None:
    """The module `google.colab.<part>`, or None anywhere but on Google Colab."""
    if any(name in os.environ for name in ELSEWHERE) or not COLAB.exists():
        return None
    try:
        return importlib.import_module(f"google.colab.{part}")
    except ImportError:
        return None


def mount_drive() -> Path | None:
    """Make the person's Google Drive appear as a folder; asks for consent only when it does not lie there yet.

    Returns:
        The folder `MyDrive`, or None where there is no Drive to be had: anywhere but on Google Colab.

    Raises:
        StorageError: consent was refused, or Drive did not appear.
    """
    # isdir says no to a mount whose other end has died, and mounting again is what helps then.
    mounted = next((drive for drive in paths.DRIVES if os.path.isdir(drive)), None)
    if mounted is not None:
        return mounted
    drive = colab("drive")
    if drive is None:
        return None
    wanted = paths.DRIVES[0]
    try:
        drive.mount(str(wanted.parent))
    except Exception as error:
        # ValueError, MessageError on refusal, pexpect's own on a timeout: to the person they are one thing.
        raise StorageError(
            f"Google Drive could not be mounted ({_reason(error)})",
            where=wanted.parent,
            fix="Run this cell again and allow it; without Drive everything is lost when Colab takes the machine back.",
        ) from error
    if not os.path.isdir(wanted):
        raise StorageError(
            "Google Drive was mounted, but My Drive is not in it",
            where=wanted.parent,
            fix="Restart the runtime and run this cell again.",
        )
    return wanted


def leave_drive() -> bool:
    """Wait until all of Drive is uploaded, then unmount it; says whether there was one.

    The last act on a machine: Drive cannot be mounted again there.

    Raises:
        StorageError: something could not be uploaded.
    """
    drive = colab("drive")
    if drive is None or not any(os.path.isdir(path) for path in paths.DRIVES):
        return False
    try:
        drive.flush_and_unmount()
    except (ValueError, NotImplementedError) as error:
        raise StorageError(
            f"Google Drive did not take everything that was written ({_reason(error)})",
            where=paths.DRIVES[0].parent,
            fix="Keep this machine, look whether your Drive is full, and try again.",
        ) from error
    return True


def _reason(error: Exception) -> str:
    """An exception of another package as a clause."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
