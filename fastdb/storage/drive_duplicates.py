"""Second things of a name, as Google Drive shows them where one was made twice: `cat (1).png`, `unet-000100 (1)`."""

from __future__ import annotations

import re
from pathlib import Path

_TWIN = re.compile(r"(?P<stem>.+) \(\d{1,3}\)(?P<ending>\.[^. ]+)?")


def first_name(name: str) -> str:
    """The name whose second one `name` would be; empty where it is not called like one."""
    found = _TWIN.fullmatch(name)
    return f"{found['stem']}{found['ending'] or ''}" if found else ""


def is_copy(path: Path) -> bool:
    """Whether a file is called like a second one and holds the very bytes of the first, which lies beside it.

    People number photos in the same way: `sks (1).png` with other bytes, or with nothing beside it, is a photo.

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
