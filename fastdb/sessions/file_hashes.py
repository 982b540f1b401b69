"""Sizes and hashes of a session's files, as they were when they came or were made: what has changed since is told.

People may edit captions and pictures, so that is no refusal. Checkpoints have manifests of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastdb.runtime.paths import work_folder
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained, make_folder, write_text
from fastdb.storage.checksum_line import is_broken, sealed
from fastdb.storage.manifest import sha256
from fastdb.storage.safe_names import name_fault, shown

FILES = ".files.json"
FORMAT = 1
LARGEST = 1 << 24
"""Bytes of the list; that of 20,000 files has a fifth of it."""
BROUGHT = ("originals", "instance_images", "captions", "class_images")
"""Folders of what training is made from: that something of it is gone is told too."""
_KEPT = (*BROUGHT, "samples", "logs", "evaluation", "generated")
_SMALL = 1 << 26
"""Bytes of a file beside the folders that is hashed unasked; exported models are told when they are made."""

Progress = Callable[[int], None]
"""Called with the bytes that were read."""


@dataclass(frozen=True)
class Known:
    """The list of a session's files: (bytes, SHA-256) by relative path; `fault` says why it cannot be read."""

    files: Mapping[str, tuple[int, str]]
    fault: str = ""


def known(folder: Path) -> Known:
    """The list of a session's folder.

    Raises:
        StorageError: the disk does not answer.
    """
    path = folder / FILES
    try:
        with explained(path):
            if path.stat().st_size > LARGEST:
                return Known({}, f"{FILES} is too large to be read")
            text = path.read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        digest = record.pop("sha256")
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in record["files"].items()}
    except FileNotFoundError:
        return Known({})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Known({}, f"{FILES}, the list of its files, was changed by hand or damaged")
    if digest != _digest(record) or record.get("format") != FORMAT or any(map(name_fault, files)):
        return Known({}, f"{FILES}, the list of its files, was changed by hand or damaged")
    return Known(files)


def note(folder: Path, made: Mapping[Path, str] | Collection[Path] = ()) -> None:
    """Take into the list every file that is not in it, and anew those that were `made`, which may come with their
    SHA-256. Those that people may remove, and that are gone, leave it.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    lock = work_folder(folder)
    make_folder(lock)
    with FileLock(lock / "files.lock"):
        list_ = known(folder)
        if not list_.fault:
            _write(folder, _taken_in(folder, list_.files, made))


def begin(folder: Path) -> None:
    """Write the list of a session's folder that nobody else knows of yet.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    _write(folder, _taken_in(folder, {}, ()))


def accept(folder: Path) -> None:
    """Take the present state of all files for right.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    _write(folder, _taken_in(folder, {}, list(_files(folder))))
    with explained(folder):
        path = folder / FILE
        write_text(path, sealed(path.read_text(encoding="utf-8")))


def forget(folder: Path, gone: Collection[Path]) -> None:
    """Take files out of the list that were removed because their owner said so.

    Raises:
        StorageError: the list cannot be written.
    """
    list_ = known(folder)
    names = {path.relative_to(folder).as_posix() for path in gone}
    left = {name: entry for name, entry in list_.files.items() if name not in names}
    if len(left) < len(list_.files):
        _write(folder, left)


def changes(
    folder: Path, *, within: Collection[str] = (), quick: bool = False, progress: Progress | None = None
) -> list[str]:
    """A line for each file that is not as it is in the list: changed by hand, damaged, or gone.

    Args:
        within: only in these folders of the session; else everywhere.
        quick: look at sizes only.

    Raises:
        StorageError: the disk does not answer.
    """
    list_, said = known(folder), []
    if list_.fault and not within:
        said.append(list_.fault)
    if not within and yaml_changed(folder):
        said.append(f"{FILE} was edited by hand or damaged since it was written")
    for name, entry in sorted(list_.files.items()):
        if within and name.split("/")[0] not in within:
            continue
        if clause := _change(folder, name, entry, quick, progress):
            said.append(f"{shown(name)} {clause}")
    return said


def unlisted(folder: Path) -> list[Path]:
    """The files of a session, checkpoints aside, that are not in its list: put there by hand, or made meanwhile.

    Raises:
        StorageError: a folder cannot be read.
    """
    there = known(folder).files
    return [path for path in _files(folder) if path.relative_to(folder).as_posix() not in there]


def yaml_changed(folder: Path) -> bool:
    """Whether `session.yaml` is not as it was written: edited by hand, as people may, or damaged.

    Raises:
        StorageError: it cannot be read.
    """
    with explained(folder):
        path = folder / FILE
        return path.is_file() and is_broken(path.read_bytes().decode("utf-8", "replace"))


def _change(folder: Path, name: str, entry: tuple[int, str], quick: bool, progress: Progress | None) -> str:
    path, since = folder / name, "was changed by hand or damaged since it came"
    try:
        with explained(path):
            size = path.stat().st_size
            if progress is not None:
                progress(size)
            if size != entry[0]:
                return f"{since}: {size} bytes instead of {entry[0]}"
            return since if not quick and sha256(path) != entry[1] else ""
    except (FileNotFoundError, NotADirectoryError):
        return "is gone" if name.split("/")[0] in BROUGHT else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _taken_in(
    folder: Path, before: Mapping[str, tuple[int, str]], made: Mapping[Path, str] | Collection[Path]
) -> dict[str, tuple[int, str]]:
    hashes = dict(made) if isinstance(made, Mapping) else {}
    new = {path.relative_to(folder).as_posix() for path in made}
    files = {}
    with explained(folder):
        there = {path.relative_to(folder).as_posix(): path for path in (*_files(folder), *made)}
        for name, path in there.items():
            if name in before and name not in new:
                files[name] = before[name]
            elif name in new or path.stat().st_size <= _SMALL or name.split("/")[0] in _KEPT:
                files[name] = (path.stat().st_size, hashes.get(path) or sha256(path))
    gone = {name: entry for name, entry in before.items() if name not in files and name.split("/")[0] in BROUGHT}
    return {name: entry for name, entry in sorted({**files, **gone}.items()) if not name_fault(name)}


def _files(folder: Path) -> Iterator[Path]:
    """The files of a session that the list is of: not hidden, no checkpoints, no record of the session itself."""
    with explained(folder):
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if Path(place) == folder / "checkpoints":
                folders.clear()
                names = [name for name in names if name == "README.txt"]
            for name in sorted(names):
                path = Path(place, name)
                if not name.startswith(".") and path != folder / FILE and path.is_file() and not path.is_symlink():
                    yield path


def _write(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    record: dict[str, Any] = {"format": FORMAT, "files": {name: list(entry) for name, entry in files.items()}}
    lines = json.dumps({**record, "sha256": _digest(record)}, ensure_ascii=False, indent=0)
    write_text(folder / FILES, lines + "\n")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
