"""Names of sessions, which are the names of their folders on any disk."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fastdb.errors import SessionError, SessionExists, SessionNotFound
from fastdb.reporting import argument
from fastdb.storage.safe_names import is_system_file, reserved_on_windows

NAME = re.compile(r"[^\W_][\w.-]{0,62}")

_LONGEST = 200
"""Bytes of UTF-8, so that `<name>.safetensors` and its temporary name fit into 255."""


def check_name(name: str) -> None:
    """Raise if a name cannot be a folder's name on Drive, Linux, macOS and Windows.

    Raises:
        SessionError: with a valid name near it.
    """
    if not is_usable(name):
        near = near_name(name)
        raise SessionError(
            "cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or digit first, "
            "and no name that Windows reserves",
            subject=repr(name) if len(name) < 100 else f"{name[:60]!r}...",
            fix=f"Use {near}, for example." if near else "Choose a name such as my_dog.",
        )


def near_name(name: str) -> str:
    """Return the name if it is valid, else a valid name near it; empty if there is none."""
    if is_usable(name):
        return name
    plain = re.sub(r"[^\w-]+", "_", name).strip("_-")[:63]
    return next((near for near in (plain, f"{plain}_") if is_usable(near)), "")


def can_be_listed(name: str) -> bool:
    """Return whether `Session.list` would yield a folder of this name."""
    return bool(name.strip()) and not name.startswith(".") and not set(name) & {"/", os.sep, "\0"} and len(name) < 256


def is_usable(name: str) -> bool:
    """Return whether a name can be given to a session."""
    short = len(name.encode("utf-8", "replace")) <= _LONGEST
    return bool(NAME.fullmatch(name)) and short and not is_system_file(name) and not reserved_on_windows(name)


def exists_already(path: Path) -> SessionExists:
    """Return the error for a name that a session has already."""
    return SessionExists(
        "there is a session of this name already",
        where=path,
        fix=f"Open it (fastdb show {argument(path.name)}), or choose another name.",
    )


def not_found(name: str, root: Path, present: Sequence[str]) -> SessionNotFound:
    """Return the error for a name that no session below `root` has, with the nearest of the names present."""
    # Names differ in case, and people type an export's file name or a folder's path instead of the name.
    names = {each.casefold(): each for each in present}
    plain = name.rstrip("/").removesuffix(".safetensors").removesuffix(".ckpt").casefold()
    if not name.strip():
        return SessionNotFound(
            "the name of the session is empty", fix="Enter a name; fastdb sessions lists the sessions."
        )
    if near := difflib.get_close_matches(plain, names, n=1):
        fix = f"Did you mean {names[near[0]]}?"
    elif names:
        fix = "List the sessions with: fastdb sessions"
    elif is_usable(name):
        fix = f"Create it with: fastdb new {argument(name)}"
    else:
        fix = "Create a session with: fastdb new NAME"
    shown = name if name.isprintable() and len(name) < 100 else f"{name[:60]!r}"
    return SessionNotFound(f"there is no session of this name in {root}", where=shown, fix=fix)
