"""The functions that the cells of the notebooks call; each is one form.

Works in any Jupyter; `google.colab` is used where it is and never required. An empty field asks for nothing.
"""

from __future__ import annotations

import os
from typing import Literal

from PIL.Image import Image

from fastdb import console
from fastdb.commands import session_changes, sessions, space
from fastdb.commands.trial import CLASS_WORD, SETTINGS, TOKEN, trial_photos
from fastdb.errors import ConfigError, ImageError, SessionNotFound
from fastdb.images.photo_files import photos_in
from fastdb.models.registry import MINI
from fastdb.notebook.leaving import disconnect, download
from fastdb.notebook.picture_cells import picture
from fastdb.notebook.report import NotebookReport
from fastdb.notebook.upload import uploaded
from fastdb.reporting import Note
from fastdb.runtime.drive import colab, mount_drive, on_dying_disk
from fastdb.runtime.paths import mounted_drive, sessions_root
from fastdb.sessions.session import Session
from fastdb.training import process

Ending = Literal["nothing", "download the safetensors", "download the ckpt", "disconnect"]

TRIAL = "try-it"
"""The session of an empty name."""
FIELDS = {
    "method": "method",
    "resolution": "resolution",
    "text_encoder_steps": "text_encoder.steps",
    "text_encoder_rate": "text_encoder.learning_rate",
    "unet_steps": "unet.steps",
    "unet_rate": "unet.learning_rate",
    "class_images": "prior.class_images",
    "sample_every": "samples.every_steps",
    "keep_every": "checkpoints.keep_every",
}
"""Settings by the fields of the session's form."""


_chosen: dict[str, str] = {}
"""The root of sessions that the tick `without_drive` chose."""


def open_drive(without_drive: bool = False, session_name: str = "") -> None:
    """Mount Google Drive in Colab, and show the sessions and the free space, or one session.

    Args:
        without_drive: keep sessions on Colab's machine, which deletes them when it ends.

    Raises:
        StorageError: access to Drive was refused, or it did not appear.
        SessionError: there is no session of that name.
    """
    if not without_drive and os.environ.get("FASTDB_ROOT") == _chosen.pop("root", ""):
        del os.environ["FASTDB_ROOT"]
    if without_drive and on_dying_disk():
        os.environ["FASTDB_ROOT"] = _chosen["root"] = str(sessions_root())
    drive = mounted_drive() if without_drive else mount_drive()
    if drive:
        console.say(f"Google Drive: {drive}")
    elif colab("runtime") is not None:
        console.say("Without Google Drive, sessions are deleted with this machine")
    else:
        console.say("No Google Drive here: sessions stay on this machine")
    if session_name:
        console.show_overview(sessions.show(session_name))
    else:
        console.show_sessions(sessions.list_sessions())
    for disk in space.disks([sessions_root()]):
        console.say(console.free_space(disk))


def open_session(
    name: str = "",
    base_model: str = "",
    token: str = "",
    class_word: str = "",
    numbers: dict[str, str] | None = None,
    *,
    change: bool = False,
) -> Session:
    """Open the session of this name or create it, and show it.

    The empty name is the trial: a session on mini with photos that fastdb draws, for which no field may be filled in.

    Args:
        numbers: values of `FIELDS` as text; an empty text asks for nothing.
        change: change a session that has not begun to the values given.

    Raises:
        ConfigError: a field is invalid, or differs from the session.
        FastDBError: the session cannot be opened or created.
    """
    report = NotebookReport()
    filled = {field: text.strip() for field, text in (numbers or {}).items() if str(text).strip()}
    if name.strip():
        settings = {FIELDS[field]: text for field, text in filled.items()}
        session = session_changes.open_or_new(
            name.strip(),
            base_model.strip(),
            token=token.strip(),
            class_word=class_word.strip(),
            settings=settings,
            change=change,
            report=report,
        )
    else:
        filled |= {field: text for field, text in (("token", token), ("class_word", class_word)) if text.strip()}
        if filled:
            raise ConfigError(
                f"is empty although {', '.join(filled)} {'are' if len(filled) > 1 else 'is'} filled in",
                subject="session_name",
                fix="Enter the name of your session; empty all fields for the trial.",
            )
        session = _trial(report)
    console.show_overview(sessions.show(session))
    return session


def add_images(session: Session, photos: str = "", *, upload_more: bool = False) -> Image | None:
    """Add photos of a folder or zip, or uploaded by the browser, and return the contact sheet of the crops.

    The browser is asked if no path is given and the session has no images yet, or more are wanted. Photos that the
    session has already are not added again. During training nothing is added.

    Raises:
        ImageError: no photos, or some cannot be used (after the others were added).
    """
    sheet = session.path / "instance_images.png"
    has_images = session.instance_images.is_dir() and bool(photos_in(session.instance_images))
    if process.find(session) is not None:
        console.say(f"{session.name} is being trained; no photos were added")
        return picture(sheet)
    if photos.strip():
        return picture(sessions.add_images(session, [photos.strip()], report=NotebookReport()))
    if has_images and not upload_more:
        console.say(f"{session.name} has images already. Enter a folder or tick upload_more to add others")
        return picture(sheet)
    with uploaded(session) as paths:
        if paths:
            return picture(sessions.add_images(session, paths, report=NotebookReport()))
    raise ImageError(
        "no photos were given", where=session.name, fix="Upload some above, or enter their folder or zip into the form."
    )


def finish(session: Session, act: Ending) -> None:
    """Let the browser download an export, or release the machine after everything was uploaded to Drive.

    Raises:
        ModelError: no such export yet.
        SessionBusy: the session is being trained, and would be lost with the machine.
        StorageError: Drive did not upload everything.
    """
    if act == "nothing":
        console.say(f"Everything is in {session.path}")
    elif act == "disconnect":
        disconnect(session)
    else:
        ending = act.split()[-1]
        lora = "_lora" if session.config.method == "lora" and ending == "safetensors" else ""
        download(session.path / f"{session.name}{lora}.{ending}")


def _trial(report: NotebookReport) -> Session:
    """Open or create the trial session, with its photos."""
    try:
        session = Session.open(TRIAL)
    except SessionNotFound:
        report.note(Note("trial session", TRIAL))
        return sessions.new(
            TRIAL, MINI, trial_photos(), token=TOKEN, class_word=CLASS_WORD, settings=SETTINGS, report=report
        )
    report.note(Note("existing session opened", session.name))
    if not photos_in(session.instance_images):
        sessions.add_images(session, trial_photos(), report=report)
    return session
