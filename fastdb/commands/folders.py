"""Verbs about a session's folder: rename, delete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdb.checkpoints.local_work import remove_dead_links
from fastdb.checkpoints.publish import nothing_published, pending
from fastdb.commands.space import Removal
from fastdb.errors import SessionBusy, StorageError
from fastdb.reporting import SILENT, Note, Report, argument, format_bytes
from fastdb.sessions import file_hashes
from fastdb.sessions.exports import dependents
from fastdb.sessions.identity import claim_work
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike, check_free
from fastdb.sessions.session_yaml import FILE, read_record, write_record
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of, remove
from fastdb.training import process


def rename(session: SessionLike, name: str, *, root: str | Path | None = None, report: Report = SILENT) -> Session:
    """Rename a session and the files of its exports, whose metadata keep the old title.

    Raises:
        SessionError: the new name is invalid.
        SessionExists: a session of that name exists.
        SessionBusy: it is being trained here or elsewhere.
        StorageError: checkpoints are not published yet, or the folder cannot be renamed.
    """
    session = Session.open(session, root)
    old, target = session.name, check_free(name, session.path.parent)
    session.check_complete()
    session, _ = claim_work(session)
    with _untouched(session, "nothing was renamed"):
        if waiting := pending(session):
            raise StorageError(
                f"{len(waiting)} checkpoints are on this machine only; nothing was renamed",
                where=old,
                fix=f"Publish them first: fastdb publish {argument(old)}",
            )
        with explained(session.path):
            names = _renamed_exports(session, name)
            os.rename(session.path, target)
            record = read_record(target)
            moved = [each.model_copy(update={"file": names.get(each.file, each.file)}) for each in record.exports]
            record = write_record(target, record.model_copy(update={"name": name, "exports": tuple(moved)}))
            renamed = Session(target, record)
            for export, new in names.items():
                os.rename(target / export, target / new)
            file_hashes.rename_files(target, names)
        for other in dependents(session):
            folder = target / Path(other.record.base_model.folder).relative_to(session.path)
            folder = folder.with_name(names.get(folder.name, folder.name))
            base = other.record.base_model.model_copy(update={"folder": str(folder)})
            other.with_values(base, other.record.subject, other.config)
    claim_work(renamed)
    report.note(Note("session renamed to", old, str(target)))
    return renamed


def delete(
    session: SessionLike,
    *,
    confirm: Callable[[Removal], bool],
    root: str | Path | None = None,
    report: Report = SILENT,
) -> int:
    """Delete a session for good, past the Drive trash, with its files on this machine, once a person has confirmed.

    Returns:
        The bytes deleted.

    Raises:
        SessionBusy: it is being trained here or elsewhere.
        StorageError: a file cannot be deleted; those before it are gone.
    """
    session = Session.open(session, root)
    work = session.work
    if others := dependents(session):
        names = ", ".join(other.name for other in others)
        raise SessionBusy(
            f"is the base model of {names}; nothing was deleted",
            subject=session.name,
            fix=f"Delete {names} first, or keep it.",
        )
    with _untouched(session, "nothing was deleted"):
        with explained(session.path):
            kinds = [
                ("folder" if path.is_dir() else "file", path.name, bytes_of(path))
                for path in sorted(session.path.iterdir())
                if not path.name.startswith(".")
            ]
            local = bytes_of(work / "checkpoints")
        if local:
            kinds.append(("folder", "checkpoints and logs on this machine", local))
        if not confirm(Removal(session.name, tuple(kinds))):
            report.note(Note("nothing deleted"))
            return 0
        with explained(session.path):
            # A deletion that is cut off leaves no half session; `free --unfinished` deletes the rest.
            hidden = session.path.with_name(f".{session.name}.{uuid.uuid4().hex[:8]}")
            os.rename(session.path, hidden)
            total = remove(hidden, first=FILE)
    with explained(work):
        total += remove(work)
        remove_dead_links()
    report.note(Note("session deleted", session.name, format_bytes(total)))
    return total


def _renamed_exports(session: Session, name: str) -> dict[str, str]:
    """Return the new names of a session's exports by the old ones.

    In a copied folder they have the original's name. An export whose new name is taken keeps its own.
    """
    names: dict[str, str] = {}
    # The own name first, which may begin with the original's.
    for old in dict.fromkeys(filter(None, (session.name, session.record.name))):
        for path in session.exports:
            new = name + path.name.removeprefix(old)
            taken = {*names.values(), *(each.name for each in session.exports)} - {path.name}
            if path.name.startswith(old) and path.name not in names and new not in taken:
                names[path.name] = new
    return names


@contextmanager
def _untouched(session: Session, result: str) -> Iterator[None]:
    """Hold the locks against a trainer and a publisher of a session.

    Raises:
        SessionBusy: it is being trained here or elsewhere.
    """
    if process.find(session) is not None:
        raise SessionBusy(
            f"is being trained; {result}",
            subject=session.name,
            fix=f"Stop it first: fastdb stop {argument(session.name)}",
        )
    refuse_elsewhere(session.path, "Or stop it there.")
    with process.training_lock(session.path), nothing_published(session):
        yield
