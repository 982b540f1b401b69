"""Files in a session's folder that nothing reads, each with the reason."""

from __future__ import annotations

from fastdb.checkpoints.checkpoint import complete, fault_in, strays
from fastdb.checkpoints.claims import claim
from fastdb.images.originals import photo_notes
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained
from fastdb.storage.drive_duplicates import first_name, is_copy
from fastdb.storage.safe_names import shown


def leftovers(session: Session) -> list[Note]:
    """Note each skipped entry of a session; of checkpoints only the sizes are compared.

    Raises:
        StorageError: a folder cannot be read.
    """
    checkpoints = reversed(complete(session.checkpoints))
    damaged = [
        Note("checkpoint skipped", checkpoint.path.name, reason)
        for checkpoint in checkpoints
        if (reason := fault_in(checkpoint, quick=True)) and claim(checkpoint.path)
    ]
    begun = bool(complete(session.checkpoint_folders, lineage=session.record.lineages))
    return [*damaged, *strays(session.checkpoints), *duplicates(session), *photo_notes(session, begun)]


def duplicates(session: Session) -> list[Note]:
    """Note each second `session.yaml`, and each copy of an instance or class image with the same bytes.

    Raises:
        StorageError: a folder cannot be read.
    """
    with explained(session.path):
        notes = [
            Note("file skipped", path.name, f"Google Drive shows it as a second {FILE}")
            for path in sorted(session.path.iterdir())
            if first_name(path.name) == FILE
        ]
        for folder in (session.instance_images, session.class_images):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.is_file() and is_copy(path):
                    notes.append(Note("file skipped", f"{folder.name}/{shown(path.name)}", "copy of another image"))
        return notes
