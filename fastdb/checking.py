"""The verb that reads everything of a session and tells what is not as it was. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from fastdb import console
from fastdb.checkpoints.checkpoint import ASIDE, Checkpoint, complete, wrong_with
from fastdb.checkpoints.leftovers import leftovers
from fastdb.checkpoints.progress import needed
from fastdb.errors import StorageError
from fastdb.images.png_chunks import png_fault
from fastdb.overview import SessionLike, open_session
from fastdb.sessions import file_hashes
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of


def check(
    session: SessionLike, *, quick: bool = False, accept: bool = False, root: str | Path | None = None
) -> list[str]:
    """Hold every file of a session against what is known of it, and say what is not as it was, a line each.

    Args:
        quick: look at sizes only, but for small files.
        accept: take what was changed since it came for right, checkpoints aside.

    Returns the lines of what is only worth knowing.

    Raises:
        SessionError: there is no such session, or it cannot be opened.
        StorageError: something is damaged, was changed or is gone; or the disk does not answer.
    """
    session = open_session(session, root)
    if accept:
        file_hashes.accept(session.path)
        console.say(f"taken for right: the files of {session.name} as they are now")
    there = [*complete(session.checkpoints), *_set_aside(session)]
    remarks = _remarks(session)
    with explained(session.path), console.bar("check", "B") as update:
        total, done = bytes_of(session.path), 0

        def more(size: int) -> None:
            nonlocal done
            done = min(done + size, total)
            update(done, total)

        wrong = file_hashes.changes(session.path, quick=quick, progress=more)
        wrong += [line for path in file_hashes.unlisted(session.path) if (line := _unlisted(session, path))]
        for checkpoint in there:
            if clause := wrong_with(checkpoint, quick=quick, needs=needed(checkpoint.stage)):
                wrong.append(f"{checkpoint.path.relative_to(session.path).as_posix()}: {clause}")
            more(bytes_of(checkpoint.path))
    for line in (*wrong, *remarks):
        console.say(line)
    if wrong:
        raise StorageError(
            f"{len(wrong)} of its files {'is' if len(wrong) == 1 else 'are'} not as they were",
            where=session.name,
            fix=f"Put them back from a copy; what you changed yourself is taken for right with: "
            f"fastdb check {session.name} --accept",
        )
    console.say(f"{session.name}: all is as it was{', by the sizes' if quick else ', every byte of it'}")
    return remarks


def _set_aside(session: Session) -> list[Checkpoint]:
    folders = sorted(session.checkpoints.glob(f"{ASIDE}*")) if session.checkpoints.is_dir() else []
    return [checkpoint for folder in folders for checkpoint in complete(folder)]


def _remarks(session: Session) -> list[str]:
    """What is passed over in a session, and is no damage to what it has."""
    damaged = {one.path.name for one in complete(session.checkpoints)}
    return [line for line in leftovers(session) if not any(line.startswith(f"checkpoint {name} ") for name in damaged)]


def _unlisted(session: Session, path: Path) -> str:
    """What is wrong with a file of which nothing is known, as far as it says itself."""
    clause = png_fault(path.read_bytes()) if path.suffix.lower() == ".png" else ""
    return f"{path.relative_to(session.path).as_posix()} {clause}" if clause else ""
