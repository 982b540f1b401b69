"""Numbered names for files and folders that are moved out of the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastdb.storage.atomic_write import explained

ASIDE = "set-aside-"
"""Start of the names; a number follows."""


def next_aside(folder: Path, before: str = "") -> Path:
    """Return the first of `<before>set-aside-1`, `<before>set-aside-2`, … that does not exist in `folder`."""
    number = 1
    while os.path.lexists(path := folder / f"{before}{ASIDE}{number}"):
        number += 1
    return path


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
        aside = next_aside(folder)
        aside.mkdir()
        for path in reversed(paths):
            path.rename(aside / path.name)
    return aside
