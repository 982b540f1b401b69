"""What a notebook's cells need beside the verbs: pictures to look at, and a browser's uploads and downloads.

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
from typing import TYPE_CHECKING, Literal

from fastdb import console
from fastdb.commands import results, sessions, space, training
from fastdb.errors import FastDBError, ImageError, ModelError, SessionBusy, StorageError
from fastdb.images.faces import fetch_yunet
from fastdb.runtime.drive import colab, leave_drive, mount_drive
from fastdb.runtime.paths import sessions_root
from fastdb.sessions.session import Session
from fastdb.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdb.images.contact_sheet import Cell

Ending = Literal["nothing", "download the safetensors", "download the ckpt", "disconnect"]

_SAMPLE = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d+)-(?P<number>\d+)")
_COLUMNS, _WIDTH = 6, 960
"""What fits beside each other in a notebook: pictures, and their pixels."""


def begin() -> None:
    """Say what runs here: the version, the GPU, or how to get one, and in Colab fetch the better face detector."""
    gpu = _gpu()
    console.say(f"fastdb {__version__}, Python {platform.python_version()}, {gpu or 'no NVIDIA GPU to be seen'}")
    if gpu is None and colab("runtime") is not None:
        console.say("training wants a GPU: choose one under Runtime, Change runtime type, and run this cell again")
    if colab("runtime") is not None:
        try:
            console.say(f"face detector: YuNet ({fetch_yunet(timeout=10)})")
        except FastDBError as error:
            console.say(f"face detector: the built-in one, for {error}")


def open_drive() -> None:
    """Mount Google Drive where there is one, list the sessions that lie there, or on this machine, and the free space.

    Raises:
        StorageError: Drive was refused, or did not appear.
    """
    drive = mount_drive()
    console.say(f"Google Drive: {drive}" if drive else "no Google Drive here: sessions stay on this machine")
    sessions.list_sessions()
    for line in space.disks([sessions_root()]):
        console.say(line)


def add_images(session: Session, folder: str = "", *, upload_more: bool = False) -> Image | None:
    """Add the photos of a folder, or those a browser uploads, and give the picture of the crops to look at.

    A browser is asked, in Colab, when no folder is named and the session holds no images yet or more are
    wanted. Photos the session knows already are not doubled. While it is being trained, nothing is added.

    Raises:
        ImageError: there are no photos, or some could not be used (after the others were added).
    """
    from fastdb.training.process import find

    sheet = session.path / "instance_images.png"
    if find(session) is not None:
        console.say(f"{session.name} is being trained: its images stay as they are")
        return _picture(sheet)
    if folder:
        return _picture(sessions.add_images(session, [folder]))
    if sheet.exists() and not upload_more:
        console.say(f"the images {session.name} holds already; name a folder or tick upload_more to add others")
        return _picture(sheet)
    with TemporaryDirectory() as place:
        photos = _uploaded(Path(place))
        if photos:
            return _picture(sessions.add_images(session, photos))
    raise ImageError("has no new photos", where=session.name, fix="Write the folder of your photos into the form.")


def samples(session: Session) -> Image | None:
    """One picture of the samples made so far, stage by stage in the order of their steps."""
    from fastdb.checkpoints.progress import STAGES
    from fastdb.images.contact_sheet import Cell

    found: dict[str, list[Cell]] = {stage: [] for stage in STAGES}
    for path in sorted(session.samples.glob("*.png"), key=_sample_key):
        name = _SAMPLE.fullmatch(path.stem)
        if name and name["stage"] in found:
            image = results.pictures_of([path])[0]
            found[name["stage"]].append(Cell(image, f"step {int(name['step'])}"))
    if not any(found.values()):
        console.say(f"{session.name} has no samples yet; set sample_every above 0 before training")
        return None
    return _sheet({stage.replace("_", " "): cells for stage, cells in found.items()})


def compare(session: Session, seeds: int) -> Image | None:
    """Evaluate the checkpoints with `seeds` pictures of each prompt; gives the grid, and the curves below it.

    With 0 seeds it is left out.

    Raises:
        FastDBError: there is nothing to evaluate, or a model that measures cannot be had.
    """
    from fastdb.images.contact_sheet import stacked

    if not seeds:
        console.say("left out: choose how many pictures of each prompt to compare the checkpoints by")
        return None
    results.evaluate(session, seeds=seeds)
    sheets = [session.path / "evaluation" / name for name in ("grid.png", "curves.png")]
    return stacked([picture for picture in map(_picture, sheets) if picture is not None])


def pictures(paths: Sequence[Path]) -> Image:
    """One picture of several, each with its file's name.

    Raises:
        ImageError: one of them cannot be read.
    """
    from fastdb.images.contact_sheet import Cell

    opened = results.pictures_of(paths)
    return _sheet({"": [Cell(image, path.name) for image, path in zip(opened, paths, strict=True)]})


def finish(session: Session, act: Ending) -> None:
    """Let the browser download an export, or give the machine back after everything reached Drive.

    Raises:
        ModelError: there is no such export yet.
        SessionBusy: it is being trained, and would be lost with the machine.
        StorageError: Drive did not take everything.
    """
    if act == "nothing":
        console.say(f"everything is in {session.path}")
    elif act == "disconnect":
        _disconnect(session)
    else:
        _download(session, session.path / f"{session.name}.{act.split()[-1]}")


def _gpu() -> str | None:
    """Name and memory of the first NVIDIA GPU, asked without torch, which would keep some of that memory."""
    asked = shutil.which("nvidia-smi")
    if asked is None:
        return None
    query = [asked, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _download(session: Session, file: Path) -> None:
    if not file.exists():
        raise ModelError("is not there yet", where=file, fix="Run the cell that exports first.")
    files = colab("files")
    if files is None:
        console.say(f"no browser to send it to outside Colab; it is {file}")
        return
    files.download(str(file))
    console.say(f"your browser is fetching {file.name}: leave this page open until it is done")


def _disconnect(session: Session) -> None:
    from fastdb.training.process import find

    runtime = colab("runtime")
    if runtime is None:
        console.say(f"only Colab's machines can be given back; everything is in {session.path}")
        return
    if find(session) is not None:
        raise SessionBusy("is being trained", where=session.name, fix="Let it end, or stop it, and disconnect then.")
    training.publish(session)
    console.say("waiting until Google Drive has uploaded everything")
    if not leave_drive():
        raise StorageError(
            "lies on this machine only and would be lost with it",
            where=session.path,
            fix="Download what you need, then disconnect in the Runtime menu.",
        )
    console.say("everything is on Google Drive; giving the machine back")
    runtime.unassign()


def _uploaded(place: Path) -> list[Path]:
    """What the person chooses in the browser, under its own name; nothing outside Colab or when they cancel."""
    files = colab("files")
    if files is None:
        return []
    # Colab saves into the current folder and renames what is there already: an empty one keeps every name.
    with chdir(place):
        return [place / name for name in files.upload()]


def _picture(path: Path) -> Image | None:
    return results.pictures_of([path])[0] if path.exists() else None


def _sheet(groups: dict[str, list[Cell]]) -> Image:
    """Rows of a few cells under one label each, thumbs as large as a notebook's column takes."""
    from fastdb.images.contact_sheet import Row, contact_sheet

    rows = [
        Row(label if first == 0 else "", cells[first : first + _COLUMNS])
        for label, cells in groups.items()
        for first in range(0, len(cells), _COLUMNS)
    ]
    columns = max(len(row.cells) for row in rows) + any(groups)  # a column for the labels
    return contact_sheet(rows, thumb=min(512, _WIDTH // columns))


def _sample_key(path: Path) -> tuple[int, str]:
    """Samples by step, whatever the number of its digits."""
    name = _SAMPLE.fullmatch(path.stem)
    return (int(name["step"]) if name else 0, path.name)
