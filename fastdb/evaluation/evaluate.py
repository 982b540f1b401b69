"""`fastdb evaluate`: draw, measure, compare, choose, and leave pictures and figures in the session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdb import console
from fastdb.checkpoints.retention import PICKED
from fastdb.errors import ConfigError, ImageError, ModelError, SessionBusy, TrainingError
from fastdb.evaluation.candidates import Candidate, busy, checkpoints_of, file_of, untrained
from fastdb.evaluation.choose import pick
from fastdb.evaluation.curves import curves
from fastdb.evaluation.grid import grid
from fastdb.evaluation.measures import Measure, Measured
from fastdb.evaluation.picture_cache import Gallery
from fastdb.evaluation.prompts import Protocol, asked_for, protocol_of, words_of
from fastdb.evaluation.report import Report, rows_of, say_difference
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.inference.engine import Request
from fastdb.inference.samplers import DEFAULT
from fastdb.models.resolve import MINI, ensure_base
from fastdb.runtime.device import choose_device
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_json
from fastdb.training.prepare import check_base

FOLDER = "evaluation"
MEASURES = ("auto", "drawn", "clip")


@dataclass(frozen=True)
class Wanted:
    """What a person asks of an evaluation; None leaves the choice.

    Attributes:
        checkpoints: steps of the UNet stage, None for all that verify.
        seeds: pictures of each prompt.
        prompts: instead of those derived from the session.
        measure: one of `MEASURES`.
        clip, dino: a folder or a name on the Hub.
        steps, guidance, sampler: how pictures are drawn; the session's sample settings when left out.
        file: an exported file to evaluate instead of checkpoints.
    """

    checkpoints: Sequence[int] | None = None
    seeds: int = 4
    prompts: Sequence[str] = ()
    measure: str = "auto"
    clip: str | None = None
    dino: str | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    file: Path | None = None


def evaluate_session(session: Session, wanted: Wanted) -> Report:
    """Evaluate a session's checkpoints, or an exported file, against the untrained base.

    Pictures that were made before with the same weights, prompt, seed and settings are used again, so an evaluation
    that was interrupted goes on. Into the session's `evaluation/` go `evaluation.json`, `grid.png` and `curves.png`;
    for a file `<its name>.json` and `<its name>-grid.png`.

    Raises:
        ConfigError: what was asked for is not there or out of bounds.
        SessionBusy: the session is being trained.
        TrainingError: there is nothing to evaluate yet, or the memory is too small.
        ImageError, ModelError, StorageError: something cannot be read or written.
    """
    if wanted.measure not in MEASURES:
        raise ConfigError("there is no such measure", where=repr(wanted.measure), fix=f"Try {', '.join(MEASURES)}.")
    request = _request(session, wanted)
    if busy(session):
        raise SessionBusy("is being trained", where=session.name, fix="Evaluate it when that is over, or stop it.")
    refuse_elsewhere(session.path, "Or stop it there, and evaluate it then.")
    with console.bar("base model", "B") as update:
        base = ensure_base(session, update)
    check_base(session, base)
    found, said = [untrained(session, base)], list[str]()
    if wanted.file is not None:
        found.append(file_of(session, base, wanted.file))
    else:
        checkpoints, said = checkpoints_of(session, base, wanted.checkpoints)
        found += checkpoints
    for line in said:
        console.say(f"warning: {line}")
    measure, protocol = _choose(session, wanted)
    console.say(f"evaluating {', '.join(one.label for one in found)}; measured by {measure.about}")
    gallery = Gallery(session.path / FOLDER / "pictures", request, choose_device().precision)
    _draw(session, gallery, found, protocol)
    measured = _measure(gallery, found, protocol, measure)
    report = Report(
        session.name,
        _settings(request, gallery),
        measure.about,
        measure.figures,
        protocol,
        found,
        measured,
        pick(rows_of(found, measured), measure.figures),
    )
    _leave(session, report, gallery, wanted.file)
    return report


def _request(session: Session, wanted: Wanted) -> Request:
    """How every picture is drawn.

    Raises:
        ConfigError: a value is out of bounds.
    """
    samples, size = session.config.samples, session.config.resolution
    return Request(
        "",
        steps=samples.steps if wanted.steps is None else wanted.steps,
        guidance=samples.guidance if wanted.guidance is None else wanted.guidance,
        sampler=wanted.sampler or DEFAULT,
        width=size,
        height=size,
    )


def _choose(session: Session, wanted: Wanted) -> tuple[Measure, Protocol]:
    """The measure and the prompts that go with it, before anything is drawn: what is missing is said at once.

    Raises:
        ImageError: there are no instance images, or one cannot be read.
        ModelError: a model that measures cannot be had.
        ConfigError: the drawn world was asked for, and no subject of it is seen.
    """
    words, photos = words_of(session), photos_in(session.instance_images)
    if not photos:
        raise ImageError("there are no instance images to compare with", where=session.name, fix="Add photos first.")
    images = [read_photo(path) for path in photos]
    asked = asked_for(wanted.prompts, words, wanted.seeds) if wanted.prompts else None
    if wanted.measure == "drawn" or (wanted.measure == "auto" and _of_drawn_world(session)):
        from fastdb.evaluation.mini_measures import Drawn, drawn_protocol
        from fastdb.world.readings import recognise

        subject = recognise(images)
        if subject is not None:
            return Drawn(subject), asked or drawn_protocol(words, subject, wanted.seeds)
        if wanted.measure == "drawn":
            raise ConfigError(
                "the instance images show no subject of the drawn world", where=session.name, fix="Try --measure clip."
            )
    from fastdb.evaluation.clip_dino_measures import CLIP, DINO, Clip, Dino, Likeness

    device = choose_device().kind
    clip = Clip(wanted.clip or CLIP, device)
    try:
        dino = Dino(wanted.dino or DINO, device, here=wanted.dino is None)
    except ModelError:
        if wanted.dino is not None:
            raise
        console.say(f"DINO does not measure: it is not on this machine; --dino {DINO} fetches it")
        dino = None
    return Likeness(clip, dino, images, words.token), asked or protocol_of(words, wanted.seeds)


def _of_drawn_world(session: Session) -> bool:
    """Whether the base model is the one that was trained on the drawn world."""
    return session.record.base_model.folder == MINI


def _draw(session: Session, gallery: Gallery, found: Sequence[Candidate], protocol: Protocol) -> None:
    """Draw what is missing, with one bar over everything."""
    shots = protocol.shots()
    missing = sum(len(gallery.missing(candidate, shots)) for candidate in found)
    total, done = len(found) * len({(shot.prompt, shot.seed) for shot in shots}), 0
    if missing < total:
        console.say(f"{total - missing} of {total} pictures were made before and are used again")
    with console.bar("draw", "picture") as update, _want_of_memory_explained():

        def more(count: int) -> None:
            nonlocal done
            done += count
            update(done, missing)

        for candidate in found:
            session.check_there()
            gallery.make(candidate, shots, more)


def _measure(gallery: Gallery, found: Sequence[Candidate], protocol: Protocol, measure: Measure) -> list[Measured]:
    """Read every candidate's pictures; figures that compare with the base are added."""
    made: list[Measured] = []
    with console.bar("measure", "checkpoint") as update, _want_of_memory_explained():
        for number, candidate in enumerate(found, start=1):
            read = measure.read(gallery.taken(candidate, protocol.shots()))
            start = made[0].values if made else read.values
            made.append(Measured({**read.values, **measure.compare(read.values, start)}, read.pictures))
            update(number, len(found))
    return made


def _leave(session: Session, report: Report, gallery: Gallery, file: Path | None) -> None:
    """Print what was found, and write it into the session's folder."""
    folder = session.path / FOLDER
    session.check_there()
    make_folder(folder)
    stem = "" if file is None else f"{file.name}-"
    told = folder / (PICKED if file is None else f"{file.name}.json")
    report.say()
    if file is None:
        step = report.candidates[report.picked.row].step
        console.say(f"make its file with: fastdb export {session.name} --step {step}")
    title = f"{session.name}: {report.measure}"
    photos = photos_in(session.instance_images)
    save_png(
        grid(gallery, report.candidates, report.protocol, photos, title, report.picked.row), folder / f"{stem}grid.png"
    )
    made = [folder / f"{stem}grid.png"]
    if shown := (report.curves() if file is None else []):
        keyed = f"{title} (green: the step to use, dashed: the limit)"
        save_png(curves(shown, keyed, report.candidates[report.picked.row].step), folder / "curves.png")
        made.append(folder / "curves.png")
    write_json(told, report.as_json(gallery))
    if file is not None:
        say_difference(report, folder / PICKED)
    for path in (*made, told):
        console.say(str(path))


def _settings(request: Request, gallery: Gallery) -> dict[str, object]:
    return {
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "width": request.width,
        "height": request.height,
        "precision": gallery.arithmetic,
    }


@contextmanager
def _want_of_memory_explained() -> Iterator[None]:
    """Turn the GPU's want of memory into one line.

    Raises:
        TrainingError: instead of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory is too small for it ({str(error).splitlines()[0][:120]})",
            where="evaluation",
            fix="Close what else uses the GPU and run the same command again; the pictures made so far are kept.",
        ) from error
