"""Names that every disk takes, whoever chose them: a path inside an archive or a folder is nothing else."""

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
_UNSEEN = re.compile(r"[\x80-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
_WINDOWS = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_LITTER = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}


def name_fault(path: str) -> str:
    """What is wrong with a relative path with `/` between its parts, as a clause; empty where nothing is."""
    if "\\" in path:
        return "has a backslash in its name"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "has the name of a place on a disk, and not in the session"
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
        return "has a name that is not text"
    if longest > LONGEST_PART or whole > LONGEST_PATH:
        return "has a name that is too long"
    if any(_UNFIT.search(part) or part.endswith((".", " ")) or _WINDOWS.fullmatch(part) for part in parts):
        return "has a name that Windows or Drive would not take"
    return ""


def fit_stem(stem: str) -> str:
    """A file's name without its ending as every disk takes it, composed (NFC): what is unfit in it becomes `_`."""
    plain = _UNSEEN.sub("_", _UNFIT.sub("_", unicodedata.normalize("NFC", stem))).replace("\\", "_").lstrip(".")
    first, point, rest = plain.partition(".")
    return (f"{first}_{point}{rest}" if _WINDOWS.fullmatch(plain) else plain) or "photo"


def double(paths: Iterable[str]) -> str:
    """The first of `paths` that means the same file as one before it on some disk; empty where none does."""
    seen: set[str] = set()
    for path in paths:
        plain = unicodedata.normalize("NFC", path).casefold()
        if plain in seen:
            return path
        seen.add(plain)
    return ""


def inside_a_file(files: Iterable[str], paths: Iterable[str]) -> str:
    """The first of `paths` with one of `files` among the folders it lies in; empty where there is none."""
    plain = {unicodedata.normalize("NFC", file).casefold() for file in files}
    for path in paths:
        parts = unicodedata.normalize("NFC", path).casefold().split("/")
        if any("/".join(parts[:end]) in plain for end in range(1, len(parts))):
            return path
    return ""


def litter(path: str) -> bool:
    """Whether a path is what systems strew about, or hidden: nothing that belongs to a session."""
    return any(part.startswith(".") or part.casefold() in _LITTER for part in path.split("/"))


def shown(name: str) -> str:
    """A name out of a stranger's hand, fit to be printed in a line."""
    return ascii(name) if len(name) <= 80 else f"{name[:60]!a}..."
