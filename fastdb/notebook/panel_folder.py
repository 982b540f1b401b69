"""The visible folder of a panel, which its page reads through the Jupyter server."""

from __future__ import annotations

import os
import time
from pathlib import Path

PREFIX = "fastdb-panel-"
STATE, FRAME, SAMPLES = "state.json", "frame.png", "samples.jpg"
_STALE = 3600.0
"""Seconds without a new state after which a killed kernel's folder is removed."""


class PanelFolder:
    """Folder with the state and the pictures of one panel.

    Files are replaced atomically but not flushed: after a power cut nobody needs them.
    """

    def __init__(self, place: Path, identity: str) -> None:
        self.path = place / f"{PREFIX}{identity}"

    def make(self) -> None:
        """Create the folder, and remove those of killed kernels beside it.

        Raises:
            OSError: the place cannot be written.
        """
        for folder in self.path.parent.glob(f"{PREFIX}*"):
            state = folder / STATE
            if state.is_file() and time.time() - state.stat().st_mtime > _STALE:
                PanelFolder(folder.parent, folder.name.removeprefix(PREFIX)).remove()
        self.path.mkdir()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file.

        Raises:
            OSError: the disk is full or gone, or the folder was deleted.
        """
        temporary = self.path / f"{name}.new"
        temporary.write_bytes(data)
        os.replace(temporary, self.path / name)

    def remove(self) -> None:
        """Remove the files that panels write, and the folder unless it contains others."""
        for name in (STATE, FRAME, SAMPLES):
            for path in (self.path / name, self.path / f"{name}.new"):
                path.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
