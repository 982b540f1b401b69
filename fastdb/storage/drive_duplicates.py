"""Duplicates with numbered names, such as `cat (1).png`, which Google Drive makes."""

from __future__ import annotations

import re
from pathlib import Path

_NUMBERED = re.compile(r"(?P<stem>.+) \(\d{1,3}\)(?P<ending>\.[^. ]+)?")


def first_name(name: str) -> str:
    """Return the name of the original that a numbered name refers to; empty for other names."""
    parts = _NUMBERED.fullmatch(name)
    return f"{parts['stem']}{parts['ending'] or ''}" if parts else ""


def is_copy(path: Path) -> bool:
    """Return whether a file has a numbered name and equals the original beside it byte for byte.

    People number photos in the same way, so `sks (1).png` with other bytes or without an original is a photo.

    Raises:
        OSError: one of them cannot be read.
    """
    name = first_name(path.name)
    if not name:
        return False
    first = path.with_name(name)
    if not first.is_file() or first.stat().st_size != path.stat().st_size:
        return False
    return first.read_bytes() == path.read_bytes()
