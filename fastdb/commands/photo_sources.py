"""Photos in files, folders and zips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastdb.errors import ConfigError, ImageError, SessionError
from fastdb.images.originals import never_cropped
from fastdb.images.photo_files import NOT_A_PHOTO, PHOTO_ENDINGS, find_photos, passed_over, photos_in
from fastdb.reporting import SILENT, Note, Report, argument, counted
from fastdb.runtime.paths import expanded
from fastdb.sessions.session import Session
from fastdb.sharing.untrusted_zip import opened
from fastdb.storage.safe_names import is_system_file, shown

_ZIP = ".zip"
_NAMED = 10
"""Files that are not taken and are reported by name."""
_NOT_PHOTOS = ("__MACOSX", ".")
"""Beginnings of names of files and folders that macOS and other systems add."""


@contextmanager
def photo_files(photos: Sequence[str | Path], report: Report = SILENT) -> Iterator[list[Path]]:
    """Yield the photos that files, folders and zips contain, each once, and report what a folder has beside them.

    Zips are extracted to a temporary folder meanwhile.

    Raises:
        ImageError: a path does not exist or cannot be read, or contains no photo.
    """
    with ExitStack() as stack:
        paths = [expanded(photo) for photo in photos]
        found: list[Path] = []
        for path in paths:
            if path.suffix.lower() == _ZIP and path.is_file():
                folder = stack.enter_context(TemporaryDirectory(prefix="fastdb-photos-"))
                found += _extracted(path, Path(folder), report)
            else:
                found += find_photos([path])
                for note in _beside(path):
                    report.note(note)
        yield list(dict.fromkeys(found))


def _beside(folder: Path) -> list[Note]:
    """Return a note for each entry of a folder of photos that is not taken, see `_not_taken`."""
    return _not_taken([(path.name, reason) for path, reason in passed_over(folder)], folder) if folder.is_dir() else []


def _not_taken(others: Sequence[tuple[str, str]], where: Path) -> list[Note]:
    notes = [Note("file skipped", shown(name), reason) for name, reason in others[:_NAMED]]
    if len(others) > _NAMED:
        rest = counted(len(others) - _NAMED, "further file")
        notes.append(Note("file skipped", f"{rest} in {where}", "none of them is a photo that can be used"))
    return notes


def _extracted(path: Path, folder: Path, report: Report) -> list[Path]:
    others: list[tuple[str, str]] = []
    try:
        with opened(path) as archive:
            members = [
                member
                for member in archive.members
                if Path(member.name).suffix.lower() in (*PHOTO_ENDINGS, ".txt")
                and not any(part.startswith(_NOT_PHOTOS) for part in Path(member.name).parts)
            ]
            archive.unpack(members, folder, "")
            taken = {member.name for member in members}
            others = [
                (member.name, NOT_A_PHOTO)
                for member in archive.members
                if member.name not in taken and not is_system_file(member.name)
                if not member.name.startswith("__MACOSX") and not member.name.endswith("/")
            ]
    except SessionError as error:
        raise ImageError(error.what, where=path, fix="Extract it, and name the folder of the photos.") from error
    for note in _not_taken(others, path):
        report.note(note)
    folders = [folder, *sorted(inside for inside in folder.rglob("*") if inside.is_dir())]
    photos = [photo for inside in folders for photo in photos_in(inside)]
    if not photos:
        raise ImageError("the zip contains no photos", where=path, fix="Add JPEG, PNG or WebP files.")
    return photos


def check_all_known(session: Session, photos: Sequence[Path], replaced: Sequence[Path] = ()) -> None:
    """Raise if photos would be added to a session whose training has begun, or change its captions.

    Args:
        replaced: those that took the place of an original of the session.

    Raises:
        ConfigError: naming the first.
    """
    from fastdb.images.intake import would_change

    adding = [*replaced, *would_change(session.originals, session.instance_images, session.captions, photos)]
    unused = {photo.resolve() for photo in never_cropped(session)}
    adding += [photo for photo in photos if photo.resolve() in unused]
    if adding:
        raise ConfigError(
            f"training has begun, so no photos can be added or get other captions ({adding[0].name}); nothing was "
            "changed",
            where=session.name,
            fix="Train a session with all photos that begins with these weights: fastdb new NAME PHOTOS --from "
            f"{argument(session.name)}",
        )
