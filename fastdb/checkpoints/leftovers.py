"""What lies in a session's folder and is passed over, told with its reason: nothing of it is read, moved or removed."""

from __future__ import annotations

from pathlib import Path

from fastdb.checkpoints.checkpoint import complete, oddments, passed_over, wrong_with
from fastdb.checkpoints.progress import needed
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained
from fastdb.storage.drive_duplicates import first_name, is_copy
from fastdb.storage.safe_names import shown


def leftovers(session: Session) -> list[str]:
    """A line for each thing in a session that is passed over; of checkpoints only the sizes are looked at.

    Raises:
        StorageError: a folder cannot be read.
    """
    there = reversed(complete(session.checkpoints))
    wrong = {one: wrong_with(one, quick=True, needs=needed(one.stage)) for one in there}
    said = [passed_over(one, clause) for one, clause in wrong.items() if clause]
    return [*said, *oddments(session.checkpoints), *second_things(session)]


def second_things(session: Session) -> list[str]:
    """A line for each second `session.yaml`, and for each second of an instance or class image with the same bytes.

    Raises:
        StorageError: a folder cannot be read.
    """
    with explained(session.path):
        said = [
            f"{path.name} is passed over: a second {FILE}, as Google Drive shows what was made twice"
            for path in sorted(session.path.iterdir())
            if first_name(path.name) == FILE
        ]
        for folder in (session.instance_images, session.class_images):
            copies = [path for path in _children(folder) if is_copy(path)]
            said += [f"{folder.name}/{shown(path.name)} is passed over: a copy of the one beside it" for path in copies]
    return said


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
