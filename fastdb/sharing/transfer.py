"""Archives and copies of sessions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fastdb.errors import SessionError, SessionExists
from fastdb.reporting import Note
from fastdb.sessions.lease_file import is_lease_file
from fastdb.sessions.session import check_free, near_name
from fastdb.sharing.untrusted_zip import BLOCK, opened
from fastdb.storage import MANIFEST
from fastdb.storage.atomic_write import explained, flush, make_folder, writing
from fastdb.storage.manifest import FORMAT, faults
from fastdb.storage.safe_names import MOST_FILES, double, is_system_file, name_fault, shown
from fastdb.storage.set_aside import ASIDE
from fastdb.storage.staged_folder import staged_folder

HEAVY = ("checkpoints", "class_images", "logs", "samples")
"""Folders of a session's training state, and of pictures that show it."""
EXPORTS = (".safetensors", ".ckpt")
README = "README.txt"

_PACKED_ALREADY = (".png", ".jpg", ".jpeg", ".webp", ".safetensors", ".packed", ".zip", ".gz")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member, so that equal sessions give equal archives."""

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")
A_DAY = 86400.0

Progress = Callable[[int, int], None]


def files_of(folder: Path, *, state: bool = True, exports: bool = True) -> tuple[list[str], list[Note]]:
    """Return the relative paths of the files to copy, and a note for each special file.

    Hidden files and the lease are omitted.

    Args:
        state: include checkpoints, class images, samples and logs.
        exports: include exported models.

    Raises:
        SessionError: a name is unusable on another disk, or there are too many files.
        StorageError: the folder cannot be read.
    """
    paths: list[str] = []
    notes: list[Note] = []

    def unreadable(error: OSError) -> None:
        raise error

    with explained(folder):
        for place, folders, names in os.walk(folder, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted([*names, *folders]):
                path = Path(place, name)
                relative = path.relative_to(folder).as_posix()
                if is_system_file(relative) or is_lease_file(relative) or stat.S_ISDIR(mode := path.lstat().st_mode):
                    continue
                if not stat.S_ISREG(mode):
                    notes.append(Note("file skipped", shown(relative), "it is a link or not a regular file"))
                elif relative != MANIFEST and _travels(relative, state, exports):
                    paths.append(relative)
                if len(paths) > MOST_FILES:
                    raise SessionError(
                        f"contains more than {MOST_FILES} files", subject=folder, fix="Name the folder of a session."
                    )
    for relative in paths:
        if clause := name_fault(relative):
            raise SessionError(f"its file {shown(relative)} {clause}", where=folder, fix="Rename it.")
    if twice := double(paths):
        raise SessionError(
            f"its file {shown(twice)} exists twice if upper and lower case are equal",
            where=folder,
            fix="Rename one of them.",
        )
    return paths, notes


def _travels(relative: str, state: bool, exports: bool) -> bool:
    parts = PurePosixPath(relative).parts
    if len(parts) > 1 and parts[0].startswith(ASIDE):
        return False  # Photos that were taken out of the session.
    if len(parts) == 1:
        return exports or not relative.endswith(EXPORTS)
    return state or parts[0] not in HEAVY or parts[1:] == (README,)


def write_archive(folder: Path, files: Sequence[str], target: Path, top: str, progress: Progress) -> int:
    """Write `files` of a session's folder and a manifest as a zip, verify it, and return its size in bytes.

    Args:
        top: name of the folder in the zip.
        progress: called with bytes; the total is twice that of the files.

    Raises:
        SessionError: a file changed or vanished meanwhile, or the archive does not match after writing.
        StorageError: the disk is full or cannot be written.
    """
    entries: dict[str, dict[str, object]] = {}
    with _still_there(folder):
        total, done = 2 * sum((folder / name).stat().st_size for name in files), 0
        with writing(target) as beside:
            with zipfile.ZipFile(beside, "w") as archive:
                for name in files:
                    digest, size = hashlib.sha256(), 0
                    with archive.open(_entry(f"{top}/{name}"), "w", force_zip64=True) as out:
                        for block in _blocks(folder / name):
                            out.write(block)
                            digest.update(block)
                            size, done = size + len(block), done + len(block)
                            progress(min(done, total), total)
                    entries[name] = {"bytes": size, "sha256": digest.hexdigest()}
                manifest = json.dumps({"format": FORMAT, "files": entries}, indent=1, ensure_ascii=False) + "\n"
                archive.writestr(_entry(f"{top}/{MANIFEST}"), manifest)
            _read_back(beside, target, top, entries, lambda read: progress(min(done + read, total), total))
            return beside.stat().st_size


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    stored = name.lower().endswith(_PACKED_ALREADY)
    entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    return entry


def _read_back(
    beside: Path, target: Path, top: str, entries: Mapping[str, Mapping[str, object]], progress: Callable[[int], None]
) -> None:
    """Read an archive as `adopt` does, and compare the checksum of each file."""
    done = 0
    with opened(beside) as archive:
        for member in archive.members:
            digest = hashlib.sha256()
            for block in archive.blocks(member):
                digest.update(block)
                done += len(block)
                progress(done)
            name = member.name.removeprefix(f"{top}/")
            if name != MANIFEST and entries[name]["sha256"] != digest.hexdigest():
                raise SessionError(
                    f"its member {shown(name)} does not match after writing",
                    where=target,
                    fix="Check the disk and run the same command again.",
                )


def copy_files(folder: Path, files: Sequence[str], target: Path, progress: Progress) -> None:
    """Copy files of a session's folder.

    Raises:
        SessionError: a file changed or vanished meanwhile.
        StorageError: a disk is full, failing or cannot be written.
    """
    with _still_there(folder):
        sizes = {name: (folder / name).stat().st_size for name in files}
        total, done = sum(sizes.values()), 0
        for name in files:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as out:
                for block in _blocks(folder / name):
                    out.write(block)
                    done += len(block)
                    progress(min(done, total), total)
            if path.stat().st_size != sizes[name]:
                raise _changed(folder, name)


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            yield block


@contextmanager
def _still_there(folder: Path) -> Iterator[None]:
    try:
        with explained(folder):
            yield
    except FileNotFoundError as error:
        raise _changed(folder, str(error.filename)) from error


def _changed(folder: Path, name: str) -> SessionError:
    return SessionError(
        f"{shown(Path(name).name)} changed or vanished while it was read",
        where=folder,
        fix="Stop the program that writes it, and run the same command again.",
    )


@contextmanager
def staged(name: str, root: Path | str | None) -> Iterator[tuple[Path, Path]]:
    """Yield a hidden folder and the new session's folder, which it becomes if the block ends without an error.

    Raises:
        SessionExists: a session of that name exists; the message contains a free name.
        SessionError: the name is invalid.
        StorageError: the folder cannot be written.
    """
    try:
        path = check_free(name, root)
    except SessionExists as error:
        raise _taken(name, root) from error
    make_folder(path.parent)
    try:
        with staged_folder(path, path.parent / f".{name}.{uuid.uuid4().hex[:8]}") as hidden:
            yield hidden, path
            for file in hidden.rglob("*"):
                flush(file)
            flush(hidden)
    except FileExistsError as error:
        raise _taken(name, root) from error


def unfinished_sessions(root: Path, older: float = A_DAY) -> list[Path]:
    """Return unfinished session folders below `root` that were not written to for some time.

    They are left by processes that were killed, on this machine or another. Their names are a session's between a dot
    and eight hexadecimal digits.

    Args:
        older: seconds since the last write.

    Raises:
        StorageError: the folder cannot be read.
    """
    now = time.time()
    with explained(root):
        there = sorted(root.iterdir()) if root.is_dir() else []
        return [path for path in there if _is_unfinished(path) and now - _touched(path) > older]


def _is_unfinished(path: Path) -> bool:
    match = _UNFINISHED.fullmatch(path.name)
    return match is not None and near_name(match["name"]) == match["name"] and path.is_dir() and not path.is_symlink()


def _touched(folder: Path) -> float:
    """Return the time of the last change below a folder."""
    times = [folder.lstat().st_mtime]
    for place, folders, names in os.walk(folder):
        times += [Path(place, name).lstat().st_mtime for name in (*folders, *names)]
    return max(times)


def _taken(name: str, root: Path | str | None) -> SessionExists:
    number, free = 2, ""
    while not free:
        candidate = f"{name[:40]}_{number}"
        try:
            check_free(candidate, root)
        except SessionExists:
            number += 1
        else:
            free = candidate
    return SessionExists("there is a session of this name already", where=name, fix=f"Use {free}, for example.")


def check_manifest(folder: Path, where: object) -> bool:
    """Verify a received folder against its manifest, delete the manifest, and return whether it existed.

    Raises:
        SessionError: a file is missing, changed or unlisted.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return False
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unlike(where, "its manifest cannot be read") from error
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if extra := sorted(files - named):
        raise _unlike(where, f"{shown(extra[0])} is not listed in its manifest")
    # Before `faults`, which would look up names outside the folder.
    if gone := sorted(named - files):
        raise _unlike(where, f"{shown(gone[0])} is listed in its manifest but missing")
    if wrong := faults(folder):
        raise _unlike(where, wrong[0])
    path.unlink()
    return True


def _unlike(where: object, what: str) -> SessionError:
    return SessionError(
        f"does not match its manifest: {what}",
        subject=where,
        fix=f"Get a new copy; or, if you changed it yourself, extract it, delete {MANIFEST} and adopt the folder.",
    )
