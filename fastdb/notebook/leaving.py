"""Downloads to the browser, and the end of a Colab machine after everything is on Google Drive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from fastdb import console
from fastdb.checkpoints.checkpoint import complete
from fastdb.commands import training
from fastdb.errors import ModelError, SessionBusy, StorageError
from fastdb.notebook.report import NotebookReport
from fastdb.runtime import paths
from fastdb.runtime.drive import colab, leave_drive
from fastdb.sessions.session import Session
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.training import process

WAIT = 30 * 60.0
"""Seconds to wait until Google Drive has uploaded a session's files."""
_EVERY = 5.0


def download(file: Path) -> None:
    """Let the browser download an export; outside Colab show where it is.

    Raises:
        ModelError: it does not exist yet.
    """
    if not file.exists():
        raise ModelError("does not exist yet", subject=file, fix="Run the Export cell first.")
    files = colab("files")
    if files is None:
        console.say(f"Outside Colab there is no download; the file is {file}")
        return
    files.download(str(file))
    console.say(f"Your browser is downloading {file.name}: leave this page open until it has finished")


def disconnect(session: Session) -> None:
    """Publish a session, wait until Google Drive has uploaded it, and release the machine.

    Raises:
        SessionBusy: the session is being trained, and would be lost with the machine.
        StorageError: Drive did not upload everything; the machine is kept.
    """
    runtime = colab("runtime")
    if runtime is None:
        console.say(f"Only Colab machines can be released. Everything is in {session.path}")
        return
    session = Session.open(session)
    if process.find(session) is not None:
        raise SessionBusy("is being trained", subject=session.name, fix="Wait or stop it, and disconnect then.")
    if not any(session.path.resolve().is_relative_to(drive.resolve()) for drive in paths.DRIVES):
        raise StorageError(
            "is on this machine only and would be lost with it",
            subject=session.path,
            fix="Download what you need, then disconnect in the Runtime menu.",
        )
    training.publish(session, report=NotebookReport())
    console.say("Waiting until Google Drive has uploaded everything")
    _wait_for_uploads(session)
    leave_drive()
    console.say("Everything is on Google Drive; releasing the machine")
    runtime.unassign()


def _wait_for_uploads(session: Session) -> None:
    """Wait until Drive has uploaded the exports and checkpoints.

    Raises:
        StorageError: it has not within `WAIT` seconds.
    """
    until = time.monotonic() + WAIT
    while waiting := [path.name for path in _files(session) if waits_for_upload(path)]:
        if time.monotonic() > until:
            raise StorageError(
                f"Google Drive has not uploaded {', '.join(waiting[:3])} within {WAIT / 60:.0f} minutes, so the "
                "machine is kept",
                where=session.name,
                fix="Check the free space of your Drive, and run this cell again.",
            )
        time.sleep(_EVERY)


def _files(session: Session) -> Iterator[Path]:
    yield from session.exports
    for checkpoint in complete(session.checkpoints):
        yield from (path for path in checkpoint.path.iterdir() if path.is_file())
