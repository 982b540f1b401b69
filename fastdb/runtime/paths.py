"""Folders of this host: where sessions live, where this machine may keep what can be made again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

DRIVES = (Path("/content/drive/MyDrive"), Path("/content/gdrive/MyDrive"))
"""Where Google Drive appears in Colab once it is mounted: Google's own notebooks, the classic notebook."""


def expanded(path: Path | str) -> Path:
    """A path with `~` replaced by the home folder; a name that only begins like one stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sessions_root(root: Path | str | None = None) -> Path:
    """The folder that holds the sessions: as given, else `FASTDB_ROOT`, else Drive, else the home folder."""
    chosen = root or os.environ.get("FASTDB_ROOT")
    if chosen:
        return expanded(chosen).absolute()
    home = next((drive for drive in DRIVES if drive.is_dir()), Path.home())
    return home / "Fast-Dreambooth" / "Sessions"


def cache_folder() -> Path:
    """The folder on this machine for what can be made or fetched again: `FASTDB_CACHE`, else `~/.cache/fastdb`."""
    chosen = os.environ.get("FASTDB_CACHE")
    return expanded(chosen).absolute() if chosen else Path.home() / ".cache" / "fastdb"


def work_folder(session: Path) -> Path:
    """The folder on this machine's own disk for what the trainer of `session` writes all the time.

    Logs that grow and locks live here and not in the session: under Google Drive's mount a file that
    stays open is never uploaded, and locks do not work.
    """
    name = hashlib.sha256(os.fsencode(session.resolve())).hexdigest()[:16]
    return cache_folder() / "work" / name
