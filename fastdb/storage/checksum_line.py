"""Checksum as the last line of a text file, to detect edits."""

from __future__ import annotations

import hashlib

_BEGINS = "# sha256 of the lines above: "


def sealed(text: str) -> str:
    """Return a text of whole lines with its checksum as the last line, in place of an earlier checksum."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_BEGINS))
    return f"{text}{_BEGINS}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_broken(text: str) -> bool:
    """Return whether a text was edited or damaged since it was sealed; a text without a checksum was not."""
    lines = text.splitlines(keepends=True)
    if not lines or ("#" not in lines[-1] and "sha256 of" not in text):
        return False
    return text != sealed(text)
