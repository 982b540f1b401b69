"""The whole journey on mini, offline, from five photos to an exported file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fastdb import console, interactive
from fastdb.checkpoints.progress import steps_of
from fastdb.commands.trial import CLASS_WORD, PROMPT, SETTINGS, TOKEN, trial_photos
from fastdb.errors import TrainingError
from fastdb.images.contact_sheet import Cell, Row, arrowed, contact_sheet
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.measures.shots import CLASS, COLOURED, CONTEXT, OTHERS, SUBJECT, Shot
from fastdb.measures.values import Taken, Value
from fastdb.models.registry import MINI
from fastdb.models.resolve import resolve_base
from fastdb.reporting import format_bytes
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.world.subjects import SUBJECTS

DRAWING: dict[str, Any] = {"steps": 20}
"""Settings of every picture, before and after training; guidance is that of the session's samples."""


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
"""Prompts by the groups of `fastdb evaluate`; no photo has one of these backgrounds."""

TIMES = {SUBJECT: 4, CONTEXT: 2, CLASS: 4, COLOURED: 2, OTHERS: 2}
"""Seeds per prompt; the contact sheet shows the first."""

READINGS = (
    ("subject", f"{PROMPT}: its colours and its diamond in their places", "all"),
    ("both", f"{PROMPT} on a ... background: the same, and the background asked for", "all"),
    ("leak", "a photo of a mug: shows this mug", "none"),
    ("coloured_leak", "a photo of a red (...) mug: shows this mug", "none"),
    ("others", "dog, house, fish, tree, car: everything as asked", "as before"),
)
"""Rows of the last table: a figure of `measures.drawn`, its meaning and its aim."""

KILL_AT = 0.52
"""Part of the UNet stage after which the trainer is killed."""


def run_demo(root: Path | None = None, name: str = "demo") -> Path:
    """Run the journey and return the contact sheet's path.

    Raises:
        FastDBError: a part failed.
    """
    began, root = time.monotonic(), Path(root or "fastdb-demo").absolute()
    name = _free(root, name)
    console.say(f"1. A new session: the model that ships, and five photos of a {CLASS_WORD} that it has never seen")
    session = interactive.new(
        name, MINI, trial_photos(), token=TOKEN, class_word=CLASS_WORD, root=root, settings=SETTINGS
    )
    part("2. Pictures of the prompts before training")
    before = pictures(session)
    part("3. Two-stage training; the trainer is killed on purpose")
    killed = train_and_kill(session)
    part("4. The same command again: training resumes from the last checkpoint")
    interactive.train(session)
    part("5. Export to one file in the original layout, in two formats")
    files = interactive.export(session)
    part("6. Pictures of the same prompts and seeds from the exported file")
    after = pictures(files[0])
    sheet = session.path / "contact_sheet.png"
    save_png(draw(session, killed, before, after), sheet)
    measure(before, after)
    summary(session, files, sheet, time.monotonic() - began)
    return sheet


def shots() -> list[Shot]:
    """Return every picture to generate, each with its own seed."""
    prompts_by_group = [(group, prompt) for group, prompts in PROMPTS.items() for prompt in prompts]
    return [
        Shot(group, prompt, seed=number + len(prompts_by_group) * turn)
        for number, (group, prompt) in enumerate(prompts_by_group)
        for turn in range(TIMES[group])
    ]


def pictures(source: Session | Path) -> list[Taken]:
    """Generate a picture for each of `shots`, from a session's weights or an exported file."""
    prepare_libraries()
    from fastdb.inference.open_model import open_source

    opened, planned = open_source(source if isinstance(source, Session) else str(source), None, None), shots()
    console.say(f"Generating {len(planned)} pictures from {opened.name}")
    requests = [opened.request(shot.prompt, seed=shot.seed, **DRAWING) for shot in planned]
    images = opened.load().generate_together(requests)
    return [Taken(shot, picture) for shot, picture in zip(planned, images, strict=True)]


def part(line: str) -> None:
    """Print the heading of a part of the journey."""
    console.say()
    console.say(line)


def train_and_kill(session: Session) -> int:
    """Start the trainer as `fastdb train` does and kill it; return the UNet step it had reached.

    Raises:
        TrainingError: it ended before that step.
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
    console.say(f"Killed process {running.pid} with SIGKILL after step {step} of the unet stage")
    return step


def draw(session: Session, killed: int, before: Sequence[Taken], after: Sequence[Taken]) -> Image:
    """Return the contact sheet of the photos, the mug before and after, and what should not change."""
    resumed = Session.open(session).record.runs[-1].begins.rsplit(" ", 1)[-1]
    first, then = _firsts(before, SUBJECT, CONTEXT), _firsts(after, SUBJECT, CONTEXT)
    return contact_sheet(
        [
            Row(
                "Five photos",
                [Cell(read_photo(path)) for path in photos_in(session.originals)],
                about="a mug that the model has never seen",
            ),
            Row(
                "Before training",
                [Cell(taken.picture) for taken in first],
                about="pictures of the prompts below",
            ),
            Row(
                "After training",
                [Cell(taken.picture, _short_prompt(taken.shot)) for taken in then],
                about=f"the same prompts and seeds; {TOKEN} is the word for this mug",
            ),
            Row("Other mugs", _pairs(before, after, CLASS, COLOURED), about="before and after: should stay other mugs"),
            Row("Other things", _pairs(before, after, OTHERS), about="before and after: should stay as they were"),
        ],
        thumb=184,
        title="Five photos of a mug, then the same mug in new pictures",
        note=f"The trainer was killed on purpose at step {killed} of {steps_of(session, 'unet')} and resumed from step "
        f"{resumed}. All pictures after training were generated from the exported file.",
    )


def measure(before: Sequence[Taken], after: Sequence[Taken]) -> None:
    """Print what the pictures show, read back from their pixels."""
    from fastdb.measures.drawn import Drawn, autoencoder

    drawn = Drawn(SUBJECTS[CLASS_WORD].photos(), CLASS_WORD, autoencoder(resolve_base(MINI).folder))
    first, then = drawn.read(before).values, drawn.read(after).values
    part("Read back from the pixels; every colour must be in its place, that of the diamond too:")
    rows = [(text, _count(first[name]), _count(then[name]), aim) for name, text, aim in READINGS]
    console.table(("pictures", "before", "after", "aim"), rows)


def summary(session: Session, files: Sequence[Path], sheet: Path, seconds: float) -> None:
    """Print where everything is."""
    part(f"Done in {seconds:.0f} s.")
    rows = [
        ("session", str(session.path)),
        ("checkpoints", str(session.checkpoints)),
        *((path.suffix[1:], f"{path} ({format_bytes(path.stat().st_size)})") for path in files),
        ("contact sheet", str(sheet)),
    ]
    console.table(("", "look at the contact sheet first"), rows)


def _firsts(taken: Sequence[Taken], *groups: str) -> list[Taken]:
    """Return the first picture of each prompt of some groups."""
    first: dict[str, Taken] = {}
    for picture in taken:
        if picture.shot.group in groups:
            first.setdefault(picture.shot.prompt, picture)
    return list(first.values())


def _pairs(before: Sequence[Taken], after: Sequence[Taken], *groups: str) -> list[Cell]:
    """Return cells with a picture before training beside the same picture after it."""
    both = zip(_firsts(before, *groups), _firsts(after, *groups), strict=True)
    return [Cell(arrowed(first.picture, then.picture), then.shot.prompt) for first, then in both]


def _short_prompt(shot: Shot) -> str:
    """Return a prompt without the beginning that the first column shows."""
    return f"… {shot.prompt.removeprefix(PROMPT).strip()}" if shot.prompt != PROMPT else shot.prompt


def _count(value: Value) -> str:
    """Format a share as `3 of 4`."""
    return f"{round(value.mean * value.count)} of {value.count}"


def _free(root: Path, name: str) -> str:
    number, free = 1, name
    while (root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
