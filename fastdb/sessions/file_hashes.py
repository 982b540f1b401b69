"""Sizes and checksums of a session's files, to detect edits and damage.

People may edit captions and pictures, so a change is reported and never refused. Checkpoints have their own manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastdb.reporting import Note
from fastdb.runtime.paths import work_folder
from fastdb.sessions.lease_file import is_lease_file
from fastdb.sessions.session_yaml import FILE, missing_parts, sealed
from fastdb.storage.atomic_write import explained, make_folder, write_text
from fastdb.storage.manifest import sha256
from fastdb.storage.safe_names import name_fault, shown

FILES = ".files.json"
FORMAT = 1
LARGEST = 1 << 24
"""Bytes of the list; that of 20,000 files has a fifth of it."""
INPUTS = ("originals", "instance_images", "captions", "class_images")
"""Folders of the training data; a file missing from them is reported too."""
_HASHED = (*INPUTS, "samples", "logs", "evaluation", "generated")
_SMALL = 1 << 26
"""Bytes up to which other files are hashed unasked. Exported models are larger and come with checksums."""

Entry = tuple[int, str]
"""Bytes and SHA-256 of a file."""


def known_files(folder: Path) -> dict[str, Entry] | None:
    """Return the listed files by relative path, none if there is no list yet, or None for a damaged list.

    Raises:
        StorageError: the disk does not answer.
    """
    path = folder / FILES
    try:
        with explained(path):
            if path.stat().st_size > LARGEST:
                return None
            text = path.read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        digest = record.pop("sha256")
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in record["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    intact = digest == _digest(record) and record.get("format") == FORMAT and not any(map(name_fault, files))
    return files if intact else None


def record_files(folder: Path, made: Mapping[Path, str] | Collection[Path] = (), *, lock: bool = True) -> None:
    """Add every unlisted file to the list of a session's folder, and update the files that were `made`.

    Files outside `INPUTS` that are gone leave the list. A damaged list is left as it is.

    Args:
        made: new or changed files, with their SHA-256 where it is known.
        lock: set to False only for a folder that no other process knows yet.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    if lock:
        make_folder(work_folder(folder))
    with FileLock(work_folder(folder) / "files.lock") if lock else nullcontext():
        listed = known_files(folder)
        if listed is not None:
            _write(folder, _updated(folder, listed, made))


def accept_changes(folder: Path, *, without: Collection[Path] = ()) -> None:
    """Replace the list by the present state of all files, `session.yaml` among them.

    Args:
        without: files that get no checksum, because they are damaged.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    _write(folder, _updated(folder, {}, list(listable(folder)), without))
    with explained(folder):
        path = folder / FILE
        write_text(path, sealed(path.read_text(encoding="utf-8")))


def forget_files(folder: Path, removed: Collection[Path]) -> None:
    """Take files off the list that were removed on their owner's request.

    Raises:
        StorageError: the list cannot be written.
    """
    listed = known_files(folder) or {}
    names = {path.relative_to(folder).as_posix() for path in removed}
    if names & listed.keys():
        _write(folder, {name: entry for name, entry in listed.items() if name not in names})


def rename_files(folder: Path, names: Mapping[str, str]) -> None:
    """Rename files in the list of a session's folder; their checksums stay.

    Raises:
        StorageError: the list cannot be written.
    """
    listed = known_files(folder) or {}
    if names.keys() & listed.keys():
        _write(folder, {names.get(name, name): entry for name, entry in listed.items()})


def changes(
    folder: Path,
    *,
    within: Collection[str] = (),
    quick: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Note]:
    """Return a note for each file that was edited, damaged or removed since it was listed.

    Args:
        within: compare only these folders and files of the session; all if empty.
        quick: compare sizes only.
        progress: called with the bytes of each file.

    Raises:
        StorageError: the disk does not answer.
    """
    listed = known_files(folder)
    notes = [Note("file list damaged", FILES)] if listed is None and not within else []
    if (not within or FILE in within) and _yaml_changed(folder):
        missing = missing_parts(folder)
        what = "session.yaml incomplete" if missing else "session.yaml changed"
        notes.append(Note(what, FILE, ", ".join(missing)))
    for name, entry in sorted((listed or {}).items()):
        if not within or name.split("/")[0] in within:
            note = _change(folder, name, entry, quick, progress)
            notes += [note] if note else []
    return notes


def unlisted(folder: Path) -> list[Path]:
    """Return the files of a session that are not in its list, checkpoints aside.

    Raises:
        StorageError: a folder cannot be read.
    """
    listed = known_files(folder) or {}
    return [path for path in listable(folder) if path.relative_to(folder).as_posix() not in listed]


def _yaml_changed(folder: Path) -> bool:
    """Return whether `session.yaml` was edited or damaged since it was written; format 1 has no checksum.

    Raises:
        StorageError: it cannot be read.
    """
    with explained(folder):
        path = folder / FILE
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    return text != sealed(text) and ("sha256 of" in text or bool(missing_parts(folder)))


def _change(folder: Path, name: str, entry: Entry, quick: bool, progress: Callable[[int], None] | None) -> Note | None:
    path = folder / name
    try:
        with explained(path):
            size = path.stat().st_size
            if progress is not None:
                progress(size)
            if size != entry[0]:
                return Note("file changed", shown(name), f"it has {size} bytes instead of {entry[0]}")
            if not quick and sha256(path) != entry[1]:
                return Note("file changed", shown(name), "its checksum differs")
    except (FileNotFoundError, NotADirectoryError):
        return Note("file missing", shown(name)) if name.split("/")[0] in INPUTS else None
    except OSError as error:
        return Note("file unreadable", shown(name), str(error.strerror))
    return None


def _updated(
    folder: Path,
    listed: Mapping[str, Entry],
    made: Mapping[Path, str] | Collection[Path],
    without: Collection[Path] = (),
) -> dict[str, Entry]:
    hashes = dict(made) if isinstance(made, Mapping) else {}
    new = {path.relative_to(folder).as_posix() for path in made}
    files = {}
    with explained(folder):
        paths = {
            path.relative_to(folder).as_posix(): path for path in (*listable(folder), *made) if path not in without
        }
        for name, path in paths.items():
            if name in listed and name not in new:
                files[name] = listed[name]
            elif name in new or path.stat().st_size <= _SMALL or name.split("/")[0] in _HASHED:
                files[name] = (path.stat().st_size, hashes.get(path) or sha256(path))
    missing = {name: entry for name, entry in listed.items() if name not in files and name.split("/")[0] in INPUTS}
    return {name: entry for name, entry in sorted({**files, **missing}.items()) if not name_fault(name)}


def listable(folder: Path) -> Iterator[Path]:
    """Yield the files that the list covers: not hidden ones, checkpoints, the lease and `session.yaml`."""
    with explained(folder):
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if Path(place) == folder / "checkpoints":
                folders.clear()
                names = [name for name in names if name == "README.txt"]
            for name in sorted(names):
                path = Path(place, name)
                if name.startswith(".") or path == folder / FILE or (path.parent == folder and is_lease_file(name)):
                    continue
                if path.is_file() and not path.is_symlink():
                    yield path


def _write(folder: Path, files: Mapping[str, Entry]) -> None:
    record: dict[str, Any] = {"format": FORMAT, "files": {name: list(entry) for name, entry in files.items()}}
    text = json.dumps({**record, "sha256": _digest(record)}, ensure_ascii=False, indent=0)
    write_text(folder / FILES, text + "\n")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
