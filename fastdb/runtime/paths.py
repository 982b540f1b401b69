"""Folders of sessions and caches."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

DRIVES = (Path("/content/drive/MyDrive"), Path("/content/gdrive/MyDrive"))
"""Mount points of Google Drive in Colab, of Google's notebooks and of the classic notebook."""

VOLUMES = (
    ("KAGGLE_KERNEL_RUN_TYPE", Path("/kaggle/working")),
    ("RUNPOD_POD_ID", Path("/workspace")),
    ("PAPERSPACE_FQDN", Path("/storage")),
    ("PAPERSPACE_CLUSTER_ID", Path("/storage")),
)
"""Folders that outlive the machine, by a variable of the hosts that have them: Kaggle, RunPod and Paperspace."""

FOLDER = "Fast-Dreambooth"
"""Folder of everything that is kept for a user, on Drive or in the home folder."""

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "wheels"
WHEELS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "wheels"
"""Locks and small model files, in the installed package or beside it in the source tree."""


def expanded(path: Path | str) -> Path:
    """Return a path with `~` replaced by the home folder, and other names unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def mounted_drive() -> Path | None:
    """Return the folder `MyDrive` of a mounted Google Drive, or None."""
    return next((drive for drive in DRIVES if drive.is_dir()), None)


def chosen_root() -> str:
    """Return the folder of sessions that `FASTDB_ROOT` names; empty if it names none."""
    return os.environ.get("FASTDB_ROOT") or ""


def sessions_root(root: Path | str | None = None) -> Path:
    """Return the folder of sessions: `root`, else `FASTDB_ROOT`, else Drive, else the host's volume, else home."""
    chosen = root or chosen_root()
    if chosen:
        return expanded(chosen).absolute()
    volumes = [volume for variable, volume in VOLUMES if variable in os.environ]
    home = mounted_drive() or next((volume for volume in volumes if volume.is_dir()), Path.home())
    return home / FOLDER / "Sessions"


def cache_folder() -> Path:
    """Return the cache folder: `FASTDB_CACHE`, else `~/.cache/fastdb`."""
    chosen = os.environ.get("FASTDB_CACHE")
    return expanded(chosen).absolute() if chosen else Path.home() / ".cache" / "fastdb"


def work_folder(session: Path) -> Path:
    """Return the folder on this machine's own disk for the working files of a session's trainer.

    Growing logs and locks are kept here: Google Drive's mount never uploads an open file, and locks do not work there.
    """
    name = hashlib.sha256(os.fsencode(session.resolve())).hexdigest()[:16]
    return cache_folder() / "work" / name
