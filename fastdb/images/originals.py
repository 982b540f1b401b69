"""Photos that somebody put into a session's `originals/`, and originals of instance images that are gone."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from fastdb.images.photo_files import photos_in
from fastdb.reporting import Note, argument
from fastdb.sessions.file_hashes import known_files
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained
from fastdb.storage.manifest import sha256
from fastdb.storage.safe_names import fit_stem

_NAMED = 3
"""Photos that a command names one by one; of more it names the folder."""


def photo_notes(session: Session, begun: bool) -> list[Note]:
    """Return notes about photos in `originals/` that are not trained as they are there, with the command to add them.

    Args:
        begun: training has begun, so no photos can be added.

    Raises:
        StorageError: a folder cannot be read.
    """
    notes = []
    if unused := never_cropped(session):
        if begun:
            named = ", ".join(path.name for path in unused)
            notes.append(Note("originals not trained", argument(session.name), named))
        else:
            notes.append(Note("originals not added", session.name, paths_argument(unused)))
    if not begun and (changed := replaced(session, _photos(session.originals), quick=True)):
        notes.append(Note("originals replaced", session.name, paths_argument(changed)))
    return notes


def never_cropped(session: Session) -> list[Path]:
    """Return the originals that have no instance image and never had one.

    Raises:
        StorageError: a folder cannot be read.
    """
    listed = {Path(name) for name in known_files(session.path) or {}}
    cropped = {_folded(path.stem) for path in listed if path.parent.name == session.instance_images.name}
    cropped |= {_folded(path.stem) for path in _photos(session.instance_images)}
    return [
        path for path in _photos(session.originals) if not {_folded(path.stem), _folded(fit_stem(path.stem))} & cropped
    ]


def replaced(session: Session, photos: Sequence[Path], *, quick: bool = False) -> list[Path]:
    """Return which photos are in `originals/` and are not those that were added under their names.

    Args:
        quick: compare sizes only.

    Raises:
        StorageError: a file cannot be read.
    """
    listed, changed = known_files(session.path) or {}, []
    for photo in photos:
        with explained(photo):
            if photo.parent.resolve() != session.originals.resolve():
                continue
            entry = listed.get(f"{session.originals.name}/{photo.name}")
            if entry and (photo.stat().st_size != entry[0] or (not quick and sha256(photo) != entry[1])):
                changed.append(photo)
    return changed


def originals_of(session: Path, images: Collection[str]) -> list[Path]:
    """Return the originals of all instance images of these names; none if one is missing or was replaced."""
    opened = Session.open(session)
    by_stem = {_folded(path.stem): path for path in _photos(opened.originals)}
    found = [by_stem.get(_folded(Path(name).stem)) for name in images]
    originals = [path for path in found if path is not None]
    return [] if len(originals) < len(found) or replaced(opened, originals) else originals


def paths_argument(paths: Sequence[Path]) -> str:
    """Return photos of one folder as arguments of a command line."""
    return " ".join(argument(path) for path in paths) if len(paths) <= _NAMED else argument(paths[0].parent)


def _photos(folder: Path) -> list[Path]:
    with explained(folder):
        return photos_in(folder) if folder.is_dir() else []


def _folded(stem: str) -> str:
    """Return a stem as it counts on disks that ignore case and composition."""
    return unicodedata.normalize("NFC", stem).casefold()
