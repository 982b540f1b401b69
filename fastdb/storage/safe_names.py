"""File names that Linux, macOS, Windows and Google Drive all accept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MOST_FILES = 20_000
"""Files and folders of a session, training checkpoints and class images among them."""
DEEPEST = 8
"""Folders inside one another."""
LONGEST_PART, LONGEST_PATH = 200, 800
"""Bytes in UTF-8 of one name, and of the whole path."""

_UNFIT = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_INVISIBLE = re.compile(r"[\x80-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *([.:].*)?", re.IGNORECASE | re.DOTALL)
_SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}


def reserved_on_windows(name: str) -> bool:
    """Return whether Windows opens a device or another file in place of this name.

    Device names count with any extension, in any case, and with superscript digits; trailing dots and spaces are
    dropped (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
    """
    return name.endswith((".", " ")) or _RESERVED.fullmatch(name) is not None


def name_fault(path: str) -> str:
    """Return why a relative path with `/` between its parts is unusable, as a clause; empty if it is usable."""
    if "\\" in path:
        return "has a backslash in its name"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is an absolute path"
    parts = path.split("/")
    if ".." in parts:
        return "leads out of the session"
    if "" in parts or "." in parts:
        return "has an empty part in its name"
    if len(parts) > DEEPEST:
        return f"lies more than {DEEPEST} folders deep"
    try:
        longest, whole = max(len(part.encode()) for part in parts), len(path.encode())
    except UnicodeEncodeError:
        return "has a name that is not valid Unicode"
    if longest > LONGEST_PART or whole > LONGEST_PATH:
        return "has a name that is too long"
    if any(_UNFIT.search(part) or reserved_on_windows(part) for part in parts):
        return "has a name that Windows or Google Drive does not accept"
    return ""


def fit_stem(stem: str) -> str:
    """Return a file name without its extension as every disk accepts it, in NFC, with `_` for unusable characters."""
    plain = _INVISIBLE.sub("_", _UNFIT.sub("_", unicodedata.normalize("NFC", stem))).replace("\\", "_").lstrip(".")
    first, dot, rest = plain.partition(".")
    return (f"{first}_{dot}{rest}" if _RESERVED.fullmatch(plain) else plain) or "photo"


def double(paths: Iterable[str]) -> str:
    """Return the first of `paths` that some disk treats as equal to an earlier one; empty if there is none."""
    seen: set[str] = set()
    for path in paths:
        plain = unicodedata.normalize("NFC", path).casefold()
        if plain in seen:
            return path
        seen.add(plain)
    return ""


def inside_a_file(files: Iterable[str], paths: Iterable[str]) -> str:
    """Return the first of `paths` that has one of `files` as a parent folder; empty if there is none."""
    plain = {unicodedata.normalize("NFC", file).casefold() for file in files}
    for path in paths:
        parts = unicodedata.normalize("NFC", path).casefold().split("/")
        if any("/".join(parts[:end]) in plain for end in range(1, len(parts))):
            return path
    return ""


def is_system_file(path: str) -> bool:
    """Return whether a path is hidden or a file that operating systems leave behind, such as `Thumbs.db`."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM_FILES for part in path.split("/"))


def shown(name: str) -> str:
    """Return an untrusted name in quotes, escaped and shortened to fit in a message."""
    return ascii(name) if len(name) <= 80 else f"{name[:60]!a}..."
