"""Identity of sessions: a session is its lineage, wherever its folder is and whatever its name is."""

from __future__ import annotations

import os
from pathlib import Path

from fastdb.reporting import Note
from fastdb.runtime.paths import cache_folder, home_of, lineage_of, work_folder, work_lineages
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.lineage import neighbours, record_home, renamed_home
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained
from fastdb.storage.safe_names import shown


def claim_work(session: Session) -> tuple[Session, list[Note]]:
    """Make the work of this machine that belongs to a session its own, before a run or a publication.

    A copy of another session, which shares its lineage, gets a lineage of its own and keeps its checkpoints. Work that
    earlier versions named by path moves to the folder of the lineage.

    Returns:
        The session, and a note if its lineage was replaced.

    Raises:
        StorageError: the session's folder or this machine's disk cannot be written.
    """
    notes, before = [], work_folder(session.path)
    if session.record.lineage and (other := original_of(session)) is not None:
        # The work of the lineage belongs to the original, wherever that is now.
        if (home := home_of(before)) is None or home.is_gone():
            before = work_folder(session.path, "")
        session = session.with_new_lineage((session.record.lineage, *session.record.inherited))
        notes.append(Note("copied session", session.name, shown(other.name)))
    _take_over(before, session)
    return session, notes


def original_of(session: Session) -> Path | None:
    """Return the folder of the session that this one is a copy of, if both have the same lineage.

    The one that is trained elsewhere, that has its work on this machine, or whose folder has the name in its file is
    the original; all machines choose the same one of two folders that nobody has trained since the copy.
    """
    path, lineage = session.path.resolve(), session.record.lineage
    same = [other for other in neighbours(path) if lineage_of(other) == lineage]
    if trained := next((other for other in same if in_use(other)), None):
        return trained
    if (home := home_of(cache_folder() / "work" / lineage)) is not None and not home.is_gone():
        return home.folder if home.folder != path else None
    if renamed := renamed_home(lineage, [path, *same]):
        return renamed if renamed != path else None
    return next(iter(same), None) if session.record.name != session.name else None


def restarted(session: Session) -> Session:
    """Give a session a new lineage, and take its work on this machine along; only under its locks.

    Raises:
        StorageError: the session's folder or this machine's disk cannot be written.
    """
    before = work_folder(session.path)
    session = session.with_new_lineage()
    _take_over(before, session)
    return session


def _take_over(before: Path, session: Session) -> None:
    """Move the work in folder `before` to the folder of the session's lineage, and record whose it is.

    Raises:
        StorageError: this machine's disk cannot be written.
    """
    if not session.record.lineage:
        return
    own = cache_folder() / "work" / session.record.lineage
    with explained(own):
        if not own.exists():
            before = before if before.exists() else _work_of(session) or before
        if before != own and before.is_dir() and not before.is_symlink() and not own.exists():
            os.rename(before, own)
            # For processes that found the work by the path of the session meanwhile, also of earlier versions.
            link = work_folder(session.path, "")
            if before == link or link.is_symlink():
                link.unlink(missing_ok=True)
                link.symlink_to(own.name)
    now = (session.path.resolve(), session.record.lineage)
    if (home := home_of(own)) is None or (home.folder, home.lineage) != now:
        record_home(own, session.path, session.record.lineage)


def _work_of(session: Session) -> Path | None:
    """Return work that an earlier version named by another path of this session, which was renamed since.

    That of an inherited lineage belongs to the original.
    """
    works = cache_folder() / "work"
    for work in sorted(works.iterdir()) if works.is_dir() else ():
        if home_of(work) is None and work_lineages(work) == {session.record.lineage}:
            return work
    return None
