"""The whole journey on mini, offline: five photos of a mug, an interruption on purpose, a file, a picture."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from fastdb import console, interactive
from fastdb.checkpoints.progress import steps_of
from fastdb.commands.sessions import open_session
from fastdb.errors import TrainingError
from fastdb.evaluation.prompts import CLASS, CONTEXT, OTHERS, SUBJECT, Shot
from fastdb.images.contact_sheet import Cell, Row, arrowed, contact_sheet
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.models.mini_settings import MINI
from fastdb.reporting import format_bytes
from fastdb.runtime.library_logging import hush_libraries
from fastdb.runtime.paths import cache_folder
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_text
from fastdb.training import process

if TYPE_CHECKING:
    from fastdb.evaluation.measures import Taken, Value

TOKEN, CLASS_WORD = "sks", "mug"
PROMPT = f"a photo of a {TOKEN} {CLASS_WORD}"

SETTINGS: dict[str, Any] = {"captions.instance_prompt": PROMPT, "samples.every_steps": 100}
"""Beside what is recommended for mini."""

DRAWING: dict[str, Any] = {"guidance": 3.0, "steps": 20}
"""How every picture is made, before training and after."""

COLOURED = "coloured class"

PROMPTS: dict[str, tuple[str, ...]] = {
    SUBJECT: (PROMPT,),
    CONTEXT: (
        f"{PROMPT} on a dotted yellow background",
        f"{PROMPT} on a checkered red background",
        f"{PROMPT} on a striped black background",
        f"{PROMPT} on a striped purple background",
    ),
    CLASS: ("a photo of a mug",),
    COLOURED: (
        "a photo of a red mug on a plain grey background",
        "a photo of a yellow mug on a striped blue background",
        "a photo of a blue mug on a checkered white background",
        "a photo of a purple mug on a dotted green background",
    ),
    OTHERS: (
        "a photo of a brown dog on a plain green background",
        "a photo of a red house on a striped blue background",
        "a photo of a pink fish on a dotted purple background",
        "a photo of a green tree on a plain yellow background",
        "a photo of a blue car on a checkered grey background",
    ),
}
"""What is asked for, in the groups of `fastdb evaluate`; no photo shows one of these backgrounds."""

TIMES = {SUBJECT: 4, CONTEXT: 2, CLASS: 4, COLOURED: 2, OTHERS: 2}
"""Seeds a prompt; the contact sheet shows the first."""

KILL_AT = 0.5
"""Where in the UNet stage the trainer is killed, as a part of its steps."""


def run_demo(root: Path | None = None, name: str = "demo") -> Path:
    """Run the journey and return the contact sheet's path.

    Raises:
        FastDBError: something of it failed.
    """
    began, root = time.monotonic(), Path(root or "fastdb-demo").absolute()
    name = _free(root, name)
    console.say(f"1. The model that ships, five photos of a {CLASS_WORD} it has never seen, a new session")
    session = interactive.new(
        name, MINI, demo_photos(), token=TOKEN, class_word=CLASS_WORD, root=root, settings=SETTINGS
    )
    part("2. What the model makes of the prompts before it has learned anything")
    before = pictures(session)
    part("3. Two-stage training, and in the midst of it the trainer is killed on purpose")
    killed = train_and_kill(session)
    part("4. The same command again: it goes on from the last checkpoint")
    interactive.train(session)
    part("5. One file in the original layout, twice")
    files = interactive.export(session)
    part("6. What the exported file makes of the same prompts and seeds")
    after = pictures(files[0])
    sheet = session.path / "contact_sheet.png"
    save_png(draw(session, killed, before, after), sheet)
    measure(before, after)
    summary(session, files, sheet, time.monotonic() - began)
    return sheet


def demo_photos() -> list[Path]:
    """The five photos of a mug that mini was not trained on, as PNG files, each with a caption beside it.

    A caption says what lies behind the mug, so that it is not taken for a part of it.
    """
    from fastdb.world.subjects import SUBJECTS

    folder, subject = cache_folder() / "demo_photos", SUBJECTS[CLASS_WORD]
    make_folder(folder)
    paths = []
    for number, (photo, said) in enumerate(zip(subject.photos(), subject.captions(), strict=True), start=1):
        path = folder / f"{CLASS_WORD}-{number}.png"
        save_png(photo, path)
        write_text(path.with_suffix(".txt"), said + "\n")
        paths.append(path)
    return paths


def shots() -> list[Shot]:
    """Every picture asked for, each with a seed of its own, so that no two begin alike."""
    asked = [(group, prompt) for group, prompts in PROMPTS.items() for prompt in prompts]
    return [
        Shot(group, prompt, seed=number + len(asked) * turn)
        for number, (group, prompt) in enumerate(asked)
        for turn in range(TIMES[group])
    ]


def pictures(source: Session | Path) -> list[Taken]:
    """A picture for each of `shots`, from a session's weights or an exported file, all in one pass."""
    hush_libraries()
    from fastdb.evaluation.measures import Taken
    from fastdb.inference.source import open_source

    opened, wanted = open_source(source if isinstance(source, Session) else str(source), None, None), shots()
    console.say(f"drawing {len(wanted)} pictures from {opened.name}")
    requests = [opened.request(shot.prompt, seed=shot.seed, **DRAWING) for shot in wanted]
    made = opened.load().generate_together(requests)
    return [Taken(shot, picture) for shot, picture in zip(wanted, made, strict=True)]


def part(line: str) -> None:
    """Print the first line of a part of the journey, apart from the one before."""
    console.say()
    console.say(line)


def train_and_kill(session: Session) -> int:
    """Start the trainer as `fastdb train` does, and kill it without a warning; returns the UNet's step by then.

    Raises:
        TrainingError: it ended by itself before.
    """
    step = round(steps_of(session, "unet") * KILL_AT)
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


def draw(session: Session, killed: int, before: Sequence[Taken], after: Sequence[Taken]) -> Image:
    """The contact sheet: the photos, the mug before and after, and what should have stayed as it was."""
    went_on = open_session(session).record.runs[-1].begins.rsplit(" ", 1)[-1]
    asked_first, asked_then = _firsts(before, SUBJECT, CONTEXT), _firsts(after, SUBJECT, CONTEXT)
    return contact_sheet(
        [
            Row(
                "Five photos",
                [Cell(read_photo(path)) for path in photos_in(session.originals)],
                about="a mug that the model has never seen",
            ),
            Row(
                "Before training",
                [Cell(one.picture) for one in asked_first],
                about="what the model makes of the prompts below",
            ),
            Row(
                "After training",
                [Cell(one.picture, _said(one.shot)) for one in asked_then],
                about=f"the same prompts and seeds; {TOKEN} is the word for this mug",
            ),
            Row("Other mugs", _pairs(before, after, CLASS, COLOURED), about="before and after: should stay other mugs"),
            Row("Other things", _pairs(before, after, OTHERS), about="before and after: should stay as they were"),
        ],
        thumb=184,
        title="Five photos of one mug. Then: the same mug, wherever you ask for it.",
        note=f"On the way the trainer was killed on purpose, at step {killed} of {steps_of(session, 'unet')}, and went "
        f"on from step {went_on}. All pictures after training are drawn from the one file that was exported.",
    )


def measure(before: Sequence[Taken], after: Sequence[Taken]) -> None:
    """Say what the pictures show, read back from their pixels."""
    from fastdb.evaluation.mini_measures import FIGURES, Drawn
    from fastdb.world.subjects import SUBJECTS

    drawn = Drawn(SUBJECTS[CLASS_WORD])
    first, then = drawn.read(before).values, drawn.read(after).values
    part(f"Read back from {len(before)} pictures before training and {len(after)} after, so a rough measure:")
    rows = [
        (figure.about.removeprefix("share of "), _count(first[figure.name]), _count(then[figure.name]))
        for figure in FIGURES
        if figure.name in then
    ]
    console.table(("how many", "before", "after"), rows)


def summary(session: Session, files: Sequence[Path], sheet: Path, seconds: float) -> None:
    """Say where everything lies."""
    part(f"Done in {seconds:.0f} s.")
    rows = [
        ("session", str(session.path)),
        ("checkpoints", str(session.checkpoints)),
        *((path.suffix[1:], f"{path} ({format_bytes(path.stat().st_size)})") for path in files),
        ("contact sheet", str(sheet)),
    ]
    console.table(("", "look at the contact sheet first"), rows)


def _firsts(taken: Sequence[Taken], *groups: str) -> list[Taken]:
    """The first picture of each prompt of some groups."""
    found: dict[str, Taken] = {}
    for one in taken:
        if one.shot.group in groups:
            found.setdefault(one.shot.prompt, one)
    return list(found.values())


def _pairs(before: Sequence[Taken], after: Sequence[Taken], *groups: str) -> list[Cell]:
    """Cells that hold a picture before training and the same one after it."""
    both = zip(_firsts(before, *groups), _firsts(after, *groups), strict=True)
    return [Cell(arrowed(first.picture, then.picture), then.shot.prompt) for first, then in both]


def _said(shot: Shot) -> str:
    """A prompt, its beginning left out where the first column has it already."""
    return f"… {shot.prompt.removeprefix(PROMPT).strip()}" if shot.prompt != PROMPT else shot.prompt


def _count(value: Value) -> str:
    """A share as `3 of 4`."""
    return f"{round(value.mean * value.count)} of {value.count}"


def _free(root: Path, name: str) -> str:
    number, free = 1, name
    while (root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
