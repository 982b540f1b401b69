"""Verification of a session's files, and of the recipe of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import Checkpoint, complete, fault_in
from fastdb.checkpoints.claims import claimed
from fastdb.errors import FastDBError, StorageError, TrainingError
from fastdb.images.photo_files import png_fault
from fastdb.models.resolve import check_present_base
from fastdb.reporting import Note, Report, argument
from fastdb.sessions import file_hashes, lease_file
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of
from fastdb.storage.safe_names import shown
from fastdb.storage.set_aside import ASIDE
from fastdb.training.preflight import check_resume, instances

_OUTPUTS = ("samples", "logs", "evaluation", "generated")
"""Folders in which every verb may leave files before they are recorded."""


@dataclass(frozen=True)
class Findings:
    """Differences between a session's files and their checksums."""

    changed: list[Note]
    """Files that were edited, damaged or removed; a person may accept them."""
    damaged: list[Note]
    """Checkpoints and PNG files whose own checksums are wrong."""
    added: list[Note]
    """Files without a checksum."""
    checked: int
    """Number of files that were read, or whose size was compared."""


def verify(session: Session, *, quick: bool, progress: Callable[[int], None]) -> Findings:
    """Compare all files of a session with their checksums.

    Args:
        quick: compare sizes only, except of small files.
        progress: called with the bytes of each file.

    Raises:
        StorageError: the disk does not answer.
    """
    changed = file_hashes.changes(session.path, quick=quick, progress=progress)
    unlisted = file_hashes.unlisted(session.path)
    damaged_pictures = _damaged_pictures(session, {note.subject for note in changed}, unlisted)
    damaged = [Note("file damaged", name, clause) for name, clause in damaged_pictures.items()]
    checked = len(file_hashes.known_files(session.path) or {}) + len(unlisted)
    for checkpoint in [*complete(session.checkpoints), *_set_aside(session)]:
        # One that is deleted meanwhile, because training has published newer ones, is not damaged.
        with suppress(FileNotFoundError), claimed(checkpoint.path):
            if clause := fault_in(checkpoint, quick=quick):
                damaged.append(Note("file damaged", checkpoint.path.relative_to(session.path).as_posix(), clause))
            checked += sum(path.is_file() for path in checkpoint.path.iterdir())
            progress(bytes_of(checkpoint.path))
    return Findings(
        [note for note in changed if note.subject not in damaged_pictures],
        damaged,
        [
            Note("file added", name)
            for path in unlisted
            if (name := _name(session, path)) not in damaged_pictures and not _expected(session, path)
        ],
        checked,
    )


def accept(session: Session) -> None:
    """Record the current files as correct, except damaged PNG files and checkpoints.

    Raises:
        StorageError: a file cannot be read, or the list cannot be written.
    """
    with explained(session.path):
        pictures = [path for path in file_hashes.listable(session.path) if path.suffix.lower() == ".png"]
        damaged = [path for path in pictures if png_fault(path.read_bytes())]
    file_hashes.accept_changes(session.path, without=damaged)


def failure(session: Session, findings: Findings) -> StorageError | None:
    """Return the error for changed and damaged files, with the remedies that apply to them; None if there are none."""
    count = len(findings.changed) + len(findings.damaged)
    if not count:
        return None
    them = "it" if count == 1 else "them"
    accepting = f"fastdb check {argument(session.name)} --accept"
    if not findings.damaged:
        what = f"{count} file{' was' if count == 1 else 's were'} changed or damaged"
        fix = f"Restore {them} from a copy; to keep your own changes run: {accepting}"
    elif not findings.changed:
        what = f"{count} file{' is' if count == 1 else 's are'} damaged"
        fix = f"Restore {them} from a copy, or delete {them}; training skips damaged checkpoints."
    else:
        what = f"{count} files were changed or damaged"
        fix = f"Restore the damaged files from a copy or delete them, and accept your own changes with: {accepting}"
    return StorageError(what, where=session.name, fix=fix)


def resume_refusals(session: Session) -> list[Note]:
    """Return a note with the reason if training would not resume because the recipe has changed."""
    try:
        check_resume(session, instances(session))
    except TrainingError as error:
        return [Note("resume refused", session.name, str(error))]
    except (FastDBError, OSError):
        return []  # Without images or prompts there is no recipe yet; training reports what is missing.
    return []


def warn_about_resuming(session: Session, report: Report) -> None:
    """Report the reason if training would not resume because the recipe or the base model has changed."""
    for note in resume_refusals(session):
        report.note(note)
    try:
        check_present_base(session)
    except FastDBError as error:
        report.note(Note("resume refused", session.name, str(error)))


def _damaged_pictures(session: Session, changed: set[str], unlisted: list[Path]) -> dict[str, str]:
    """Return the fault of each changed or unlisted PNG file whose own checksums are wrong, by its shown name."""
    candidates = {_name(session, path): path for path in file_hashes.listable(session.path)}
    unlisted_names = {_name(session, path) for path in unlisted}
    return {
        name: clause
        for name, path in candidates.items()
        if (name in changed or name in unlisted_names) and path.suffix.lower() == ".png"
        if (clause := png_fault(path.read_bytes()))
    }


def _expected(session: Session, path: Path) -> bool:
    """Return whether an unlisted file is one that this package writes and records later."""
    folder, *_ = path.relative_to(session.path).parts
    own_class_image = folder == session.class_images.name and path.name.startswith("class-")
    return folder in _OUTPUTS or own_class_image or path == session.path / lease_file.FILE


def _name(session: Session, path: Path) -> str:
    return shown(path.relative_to(session.path).as_posix())


def _set_aside(session: Session) -> list[Checkpoint]:
    folders = sorted(session.checkpoints.glob(f"{ASIDE}*")) if session.checkpoints.is_dir() else []
    return [checkpoint for folder in folders for checkpoint in complete(folder)]
