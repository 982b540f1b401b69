"""Numbered folders for files that are moved out of the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdb.storage.atomic_write import explained

ASIDE = "set-aside-"
"""Beginning of the folder names; a number follows."""


def move_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move `paths`, which lie in `folder`, into a new subfolder `set-aside-N`, the last path first.

    Returns:
        The new folder; None without paths.

    Raises:
        StorageError: the disk is read-only, failing or gone.
    """
    if not paths:
        return None
    with explained(folder):
        number = 1
        while (folder / f"{ASIDE}{number}").exists():
            number += 1
        aside = folder / f"{ASIDE}{number}"
        aside.mkdir()
        for path in reversed(paths):
            path.rename(aside / path.name)
    return aside
