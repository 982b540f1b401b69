"""A checksum as the last line of a text that people may edit: whether it is as it was written can be told."""

from __future__ import annotations

import hashlib

_BEGINS = "# sha256 of the lines above: "


def sealed(text: str) -> str:
    """A text of whole lines with its checksum as a comment below it; one that it has already is replaced."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_BEGINS))
    return f"{text}{_BEGINS}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_broken(text: str) -> bool:
    """Whether a text is not as it was sealed: edited by hand, or damaged. One that never was is not broken."""
    lines = text.splitlines(keepends=True)
    if not lines or ("#" not in lines[-1] and "sha256 of" not in text):
        return False
    return text != sealed(text)
