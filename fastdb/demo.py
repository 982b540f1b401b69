"""The whole journey on a small model, offline: photos, two stages, an interruption on purpose, a file, a picture."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fastdb import console, overview, workflow
from fastdb.errors import TrainingError
from fastdb.images.intake import save_png
from fastdb.images.photos import photos_in, read_photo
from fastdb.images.sheet import Cell, Row, contact_sheet, save_sheet
from fastdb.runtime.places import cache_folder
from fastdb.runtime.quiet import hush_libraries
from fastdb.sessions.session import Session
from fastdb.storage.durable import make_folder
from fastdb.training import process

PHOTOS = {"sks astronaut": "astronaut", "sks cat": "cat", "sks cup": "coffee"}
"""Prompts, which are also the files' names, and the photos of scikit-image they stand for."""

GUIDANCE = 1.5

SETTINGS: dict[str, Any] = {
    "resolution": 64,
    "batch_size": 4,
    "text_encoder.steps": 60,
    "text_encoder.learning_rate": 3e-4,
    "unet.steps": 600,
    "unet.learning_rate": 2e-3,
    "checkpoints.every_steps": 100,
    "samples.every_steps": 100,
    "samples.guidance": GUIDANCE,
    "samples.prompts": ["sks astronaut"],
}
"""A random model has everything to learn, so rates are a thousand times the classic ones."""

KILL_AT = 0.45
"""Where in the UNet stage the trainer is killed, as a part of its steps."""


def run_demo(root: Path | None = None, name: str = "demo") -> Path:
    """Run the journey and return the contact sheet's path.

    Raises:
        FastDBError: something of it failed.
    """
    began, root = time.monotonic(), Path(root or "fastdb-demo").absolute()
    name = _free(root, name)
    console.say("1. A small base model, photos, a new session")
    session = workflow.new(name, "standin", demo_photos(), root=root, settings=SETTINGS)
    console.say("\n2. What the base model makes of the prompts before it has learned anything")
    before = pictures(session)
    console.say("\n3. Two-stage training, and in the midst of it the trainer is killed on purpose")
    killed = train_and_kill(session)
    console.say("\n4. The same command again: it goes on from the last checkpoint")
    workflow.train(session)
    console.say("\n5. One file in the original layout, twice")
    files = workflow.export(session)
    console.say("\n6. What the exported file makes of the same prompts and seeds")
    after = pictures(files[0])
    sheet = session.path / "contact_sheet.png"
    save_sheet(draw(session, killed, before, after), sheet)
    summary(session, files, sheet, time.monotonic() - began)
    return sheet


def demo_photos() -> list[Path]:
    """The photos that ship inside scikit-image, as files named after their prompts."""
    from PIL import Image as Images
    from skimage import data

    folder = cache_folder() / "demo_photos"
    make_folder(folder)
    paths = []
    for prompt, photo in PHOTOS.items():
        path = folder / f"{prompt}.png"
        save_png(Images.fromarray(getattr(data, photo)()), path)
        paths.append(path)
    return paths


def pictures(source: Session | Path) -> list[Image]:
    """One picture a prompt, from a session's weights or an exported file."""
    hush_libraries()
    from fastdb.inference.source import open_source

    opened = open_source(source if isinstance(source, Session) else str(source), None, None)
    engine, made = opened.load(), []
    with console.bar("generate", "picture") as update:
        for prompt in PHOTOS:
            made += engine.generate(opened.request(prompt, guidance=GUIDANCE))
            update(len(made), len(PHOTOS))
    return made


def train_and_kill(session: Session) -> int:
    """Start the trainer as `fastdb train` does, and kill it without a warning; returns the UNet's step by then.

    Raises:
        TrainingError: it ended by itself before.
    """
    step = round(session.config.unet.steps * KILL_AT)
    running, view = process.start(session), console.TrainingView()
    for event in running.follow():
        view.show(event)
        if event["event"] == "step" and event["stage"] == "unet" and event["step"] == step and running.alive():
            os.kill(running.pid, signal.SIGKILL)
            break
    else:
        raise TrainingError(f"the trainer ended before step {step} of the unet stage", where=session.name)
    view.close()
    running.reap()
    console.say(f"killed process {running.pid} with SIGKILL after step {step} of the unet stage")
    return step


def draw(session: Session, killed: int, before: Sequence[Image], after: Sequence[Image]) -> Image:
    """The contact sheet: photos, crops, samples on the way, before and after."""
    from fastdb.images.crop import choose_crop

    photos, crops = [], []
    for path in photos_in(session.originals):
        photo = read_photo(path)
        crop = choose_crop(photo)
        box = (crop.left, crop.top, crop.left + crop.size, crop.top + crop.size)
        photos.append(Cell(photo, crop.reason, box))
    for path in photos_in(session.instance_images):
        crops.append(Cell(read_photo(path), path.stem))
    samples = [Cell(read_photo(path), _moment(path)) for path in photos_in(session.samples)]
    went_on = overview.open_session(session).record.runs[-1].begins
    return contact_sheet(
        [
            Row("photos", photos),
            Row("instance images", crops),
            Row("samples on the way", samples),
            Row("before training", [Cell(one, prompt) for one, prompt in zip(before, PHOTOS, strict=True)]),
            Row("after, from the file", [Cell(one, prompt) for one, prompt in zip(after, PHOTOS, strict=True)]),
        ],
        title=f"{session.name}: from three photos to one file; killed at unet step {killed}, went on from {went_on}",
    )


def summary(session: Session, files: Sequence[Path], sheet: Path, seconds: float) -> None:
    """Say where everything lies."""
    console.say(f"\nDone in {seconds:.0f} s.")
    rows = [
        ("session", str(session.path)),
        ("checkpoints", str(session.checkpoints)),
        *((path.suffix[1:], f"{path} ({console.size(path.stat().st_size)})") for path in files),
        ("contact sheet", str(sheet)),
    ]
    console.table(("", "look at the contact sheet first"), rows)


def _moment(sample: Path) -> str:
    """`unet-000300-1.png` as `unet 300`."""
    stage, step, _ = sample.stem.rsplit("-", 2)
    return f"{stage} {int(step)}"


def _free(root: Path, name: str) -> str:
    number, free = 1, name
    while (root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
