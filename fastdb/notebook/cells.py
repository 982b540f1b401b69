"""Functions that the cells of a notebook call: pictures to look at, and a browser's uploads and downloads.

Works in any Jupyter; `google.colab` is used where it is and never required.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL.Image import Image

from fastdb import console, interactive
from fastdb.checkpoints.progress import STAGES
from fastdb.commands import space
from fastdb.downloads import small_models
from fastdb.errors import FastDBError, ImageError, ModelError, SessionBusy, StorageError
from fastdb.images.contact_sheet import Cell, Row, contact_sheet, stacked
from fastdb.images.photos import read_photo
from fastdb.runtime.drive import colab, leave_drive, mount_drive
from fastdb.runtime.paths import sessions_root
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.version import __version__

Ending = Literal["nothing", "download the safetensors", "download the ckpt", "disconnect"]

_SAMPLE = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d+)-(?P<number>\d+)")
_COLUMNS, _WIDTH = 6, 960
"""Images side by side in a notebook, and their total width in pixels."""


def begin() -> None:
    """Show the version and the GPU, and in Colab download the small models that the wheel lacks, once."""
    gpu = _gpu()
    console.say(f"fastdb {__version__}, Python {platform.python_version()}, {gpu or 'no NVIDIA GPU found'}")
    if gpu is None and colab("runtime") is not None:
        console.say("Training needs a GPU: choose one under Runtime > Change runtime type, and run this cell again")
    if colab("runtime") is not None:
        for name in small_models.small_models():
            if small_models.find(name) is None:
                _fetch(name)


def _fetch(name: str) -> None:
    try:
        console.say(f"Downloaded {small_models.fetch(name, timeout=10)}")
    except FastDBError as error:
        console.say(f"Continuing without {name}: {error}")


def open_drive() -> None:
    """Mount Google Drive in Colab; show the sessions and the free space.

    Raises:
        StorageError: access to Drive was refused, or it did not appear.
    """
    drive = mount_drive()
    console.say(f"Google Drive: {drive}" if drive else "No Google Drive here: sessions stay on this machine")
    interactive.list_sessions()
    for disk in space.disks([sessions_root()]):
        console.say(console.free_space(disk))


def add_images(session: Session, folder: str = "", *, upload_more: bool = False) -> Image | None:
    """Add photos of a folder, or uploaded by the browser, and return the contact sheet of the crops.

    In Colab the browser uploads photos if no folder is given and the session has no images yet, or more are wanted.
    Photos that the session has already are not added again. During training nothing is added.

    Raises:
        ImageError: no photos, or some cannot be used (after the others were added).
    """
    sheet = session.path / "instance_images.png"
    if process.find(session) is not None:
        console.say(f"{session.name} is being trained; no photos were added")
        return _picture(sheet)
    if folder:
        return _picture(interactive.add_images(session, [folder]))
    if sheet.exists() and not upload_more:
        console.say(f"{session.name} has images already. Name a folder or tick upload_more to add others")
        return _picture(sheet)
    with TemporaryDirectory() as place:
        photos = _uploaded(Path(place))
        if photos:
            return _picture(interactive.add_images(session, photos))
    raise ImageError("no photos were given", where=session.name, fix="Write the folder of your photos into the form.")


def samples(session: Session) -> Image | None:
    """Return a contact sheet of the samples so far, by stage and step."""
    cells: dict[str, list[Cell]] = {stage: [] for stage in STAGES}
    for path in sorted(session.samples.glob("*.png"), key=_sample_key):
        name = _SAMPLE.fullmatch(path.stem)
        if name and name["stage"] in cells:
            image = read_photo(path)
            cells[name["stage"]].append(Cell(image, f"step {int(name['step'])}"))
    if not any(cells.values()):
        console.say(f"{session.name} has no samples yet. Set sample_every above 0 before training")
        return None
    return _sheet({stage.replace("_", " "): row for stage, row in cells.items()})


def compare(session: Session, seeds: int) -> Image | None:
    """Evaluate the checkpoints with `seeds` images per prompt; return the grid with the curves below it.

    With 0 seeds nothing is evaluated.

    Raises:
        FastDBError: nothing to evaluate, or a measuring model is not available.
    """
    if not seeds:
        console.say("Skipped. Set pictures_of_each to 2 or more to compare")
        return None
    interactive.evaluate(session, seeds=seeds)
    sheets = [session.path / "evaluation" / name for name in ("grid.png", "curves.png")]
    return stacked([picture for picture in map(_picture, sheets) if picture is not None])


def pictures(paths: Sequence[Path]) -> Image:
    """Return a contact sheet of images with their file names.

    Raises:
        ImageError: an image cannot be read.
    """
    return _sheet({"": [Cell(read_photo(path), path.name) for path in paths]})


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
        _disconnect(session)
    else:
        _download(session, session.path / f"{session.name}.{act.split()[-1]}")


def _gpu() -> str | None:
    """Return name and memory of the first NVIDIA GPU, without torch, which would occupy some of that memory."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _download(session: Session, file: Path) -> None:
    if not file.exists():
        raise ModelError("does not exist yet", subject=file, fix="Run the export cell first.")
    files = colab("files")
    if files is None:
        console.say(f"Outside Colab there is no download; the file is {file}")
        return
    files.download(str(file))
    console.say(f"Your browser is downloading {file.name}: leave this page open until it has finished")


def _disconnect(session: Session) -> None:

    runtime = colab("runtime")
    if runtime is None:
        console.say(f"Only Colab machines can be released. Everything is in {session.path}")
        return
    if process.find(session) is not None:
        raise SessionBusy("is being trained", subject=session.name, fix="Wait or stop it, and disconnect then.")
    interactive.publish(session)
    console.say("Waiting until Google Drive has uploaded everything")
    if not leave_drive():
        raise StorageError(
            "is on this machine only and would be lost with it",
            subject=session.path,
            fix="Download what you need, then disconnect in the Runtime menu.",
        )
    console.say("Everything is on Google Drive; releasing the machine")
    runtime.unassign()


def _uploaded(place: Path) -> list[Path]:
    """Return the photos a person uploads in the browser; none outside Colab or on cancel."""
    files = colab("files")
    if files is None:
        return []
    # Colab saves into the current folder and renames duplicates; in an empty folder every name is kept.
    with chdir(place):
        return [place / name for name in files.upload()]


def _picture(path: Path) -> Image | None:
    return read_photo(path) if path.exists() else None


def _sheet(groups: dict[str, list[Cell]]) -> Image:
    """Return a contact sheet with labelled rows, thumbnails as large as a notebook's column allows."""
    rows = [
        Row(label if first == 0 else "", cells[first : first + _COLUMNS])
        for label, cells in groups.items()
        for first in range(0, len(cells), _COLUMNS)
    ]
    columns = max(len(row.cells) for row in rows) + any(groups)  # plus the labels
    return contact_sheet(rows, thumb=min(512, _WIDTH // columns))


def _sample_key(path: Path) -> tuple[int, str]:
    """Samples by step, whatever the number of its digits."""
    name = _SAMPLE.fullmatch(path.stem)
    return (int(name["step"]) if name else 0, path.name)
