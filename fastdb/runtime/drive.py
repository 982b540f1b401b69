"""Mounting and unmounting Google Drive in Colab."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from fastdb.errors import StorageError
from fastdb.runtime import paths

COLAB = Path("/var/colab/hostname")
"""File of Colab's machines. The `google.colab` package alone proves nothing: it can be installed anywhere."""

ELSEWHERE = ("KAGGLE_KERNEL_RUN_TYPE", "VERTEX_PRODUCT")
"""Variables of hosts whose images contain `google.colab` although it does not work there."""


def colab(part: str) -> ModuleType | None:
    """Return the module `google.colab.<part>`, or None outside Colab."""
    if any(name in os.environ for name in ELSEWHERE) or not COLAB.exists():
        return None
    try:
        return importlib.import_module(f"google.colab.{part}")
    except ImportError:
        return None


def on_dying_disk(root: Path | str | None = None) -> bool:
    """Return whether sessions would be made on the disk of a Colab machine, which is deleted with it."""
    here = COLAB.exists() and not any(name in os.environ for name in ELSEWHERE)
    return here and not (root or paths.chosen_root()) and not any(os.path.isdir(drive) for drive in paths.DRIVES)


def check_outlives(root: Path | str | None = None) -> None:
    """Check that a new session outlives this machine, or that its folder was chosen.

    Raises:
        StorageError: Google Drive is not mounted on Colab.
    """
    if on_dying_disk(root):
        raise StorageError(
            "Google Drive is not mounted, so a new session would be lost when Colab deletes this machine",
            where=paths.sessions_root(),
            fix="Run the cell that connects Drive, tick without_drive, or choose a folder with --root.",
        )


def mount_drive() -> Path | None:
    """Mount Google Drive unless it is mounted, which asks the user for consent.

    Returns:
        The folder `MyDrive`; None outside Colab.

    Raises:
        StorageError: consent was refused, or mounting failed.
    """
    # isdir is False for a mount whose server died, and mounting again repairs it.
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
        # ValueError, MessageError on refusal, and pexpect's errors on a timeout mean the same to the user.
        raise StorageError(
            f"Google Drive could not be mounted ({_reason(error)})",
            where=wanted.parent,
            fix="Run this cell again and grant access; without Drive all files are lost when Colab ends the session.",
        ) from error
    if not os.path.isdir(wanted):
        raise StorageError(
            "Google Drive is mounted, but My Drive is missing",
            where=wanted.parent,
            fix="Restart the runtime and run this cell again.",
        )
    return wanted


def leave_drive() -> bool:
    """Upload all pending files to Drive and unmount it, and return whether it was mounted.

    Drive cannot be mounted again on the same machine.

    Raises:
        StorageError: a file could not be uploaded.
    """
    drive = colab("drive")
    if drive is None or not any(os.path.isdir(path) for path in paths.DRIVES):
        return False
    try:
        drive.flush_and_unmount()
    except (ValueError, NotImplementedError) as error:
        raise StorageError(
            f"some files could not be uploaded to Google Drive ({_reason(error)})",
            where=paths.DRIVES[0].parent,
            fix="Keep this machine running, free space on Drive if it is full, and try again.",
        ) from error
    return True


def _reason(error: Exception) -> str:
    """Return an exception of another package as a clause."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
