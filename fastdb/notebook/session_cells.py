"""Cells of the notebook of sessions; each does nothing until its fields are filled in."""

from __future__ import annotations

from fastdb import console
from fastdb.commands import folders, sessions, sharing, space
from fastdb.errors import SessionError
from fastdb.notebook.form_fields import named
from fastdb.notebook.report import NotebookReport
from fastdb.runtime.paths import sessions_root


def import_session(source: str, new_name: str = "", base_model: str = "") -> None:
    """Create a session from a zip, a folder, a link or a session of the classic notebook.

    Raises:
        FastDBError: it cannot be imported; nothing was created.
    """
    if not source.strip():
        console.say("Enter a link, a zip or a folder in source to import a session")
        return
    report = NotebookReport()
    session = sharing.adopt(source.strip(), new_name.strip() or None, base=base_model.strip() or None, report=report)
    console.show_overview(sessions.show(session))


def share(session_name: str, checkpoints: bool = False) -> None:
    """Write a session to a zip beside the sessions.

    Raises:
        FastDBError: it cannot be shared.
    """
    if named(session_name, "share it"):
        target = sessions_root() / f"{session_name.strip()}.zip"
        sharing.share(session_name.strip(), target, checkpoints=checkpoints, report=NotebookReport())


def free(session_name: str, what: str, delete_them: bool = False) -> None:
    """Show what a session's files take, and delete those of one kind after a confirmation.

    Raises:
        FastDBError: they cannot be deleted.
    """
    if not session_name.strip():
        console.show_usage(space.space(), details=False)
        console.say("Enter the name of a session to free space")
        return

    def confirm(removal: space.Removal) -> bool:
        console.show_removal(removal)
        if not delete_them:
            console.say("Tick delete_them and run this cell again to delete them for good")
        return delete_them

    space.free(session_name.strip(), [what], confirm=confirm, report=NotebookReport())


def rename(session_name: str, new_name: str) -> None:
    """Rename a session and its exports.

    Raises:
        FastDBError: it cannot be renamed.
    """
    if not (session_name.strip() and new_name.strip()):
        console.say("Enter the name of a session and its new name to rename it")
        return
    folders.rename(session_name.strip(), new_name.strip(), report=NotebookReport())


def delete(session_name: str, type_it_again: str) -> None:
    """Delete a session for good if its name was typed twice; without the second name, show what would be deleted.

    Raises:
        SessionError: the names differ.
        FastDBError: it cannot be deleted.
    """
    name, again = session_name.strip(), type_it_again.strip()
    if not named(name, "delete it"):
        return
    if again and again != name:
        raise SessionError("the two names differ; nothing was deleted", where=again, fix="Type the name again.")

    def confirm(removal: space.Removal) -> bool:
        console.show_removal(removal)
        if not again:
            console.say("Enter its name in type_it_again as well to delete it for good")
        return again == name

    folders.delete(name, confirm=confirm, report=NotebookReport())
