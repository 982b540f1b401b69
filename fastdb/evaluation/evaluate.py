"""Evaluation of a session's checkpoints or of an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdb.checkpoints.retention import PICKED
from fastdb.errors import ConfigError, ImageError, ModelError, SessionBusy
from fastdb.evaluation.candidates import Candidate, PictureCache, checkpoints_of, file_of, untrained
from fastdb.evaluation.charts import curves_of, draw_curves, draw_grid
from fastdb.evaluation.choose import Row, pick
from fastdb.evaluation.measures import Measure, Measured
from fastdb.evaluation.prompts import Protocol, custom_protocol, default_protocol, words_of
from fastdb.evaluation.report import Evaluation, compare_export
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.inference.request import Request
from fastdb.inference.samplers import DEFAULT
from fastdb.models.registry import MINI
from fastdb.models.resolve import ensure_base
from fastdb.reporting import SILENT, Note, Report, argument
from fastdb.runtime.device import choose_device, explain_out_of_memory
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_json
from fastdb.training.process import find

FOLDER = "evaluation"
MEASURES = ("auto", "drawn", "clip")

_OUT_OF_MEMORY = "Close other programs that use the GPU and run the same command again; finished pictures are kept."


@dataclass(frozen=True)
class Options:
    """Options of an evaluation; None stands for the default.

    Attributes:
        checkpoints: steps of the UNet stage, None for all valid checkpoints.
        seeds: pictures per prompt.
        prompts: replace those derived from the session.
        measure: an element of `MEASURES`.
        clip, dino: a folder or a name on the Hub.
        steps, guidance, sampler: settings of pictures; by default the session's sample settings.
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


def evaluate_session(session: Session, options: Options, report: Report = SILENT) -> Evaluation:
    """Evaluate a session's checkpoints, or an exported file, against the untrained base.

    Existing pictures of the same weights, prompt, seed and settings are reused, so an interrupted evaluation resumes.
    Writes `evaluation.json`, `grid.png` and `curves.png` into the session's `evaluation/`; for a file `<its name>.json`
    and `<its name>-grid.png`.

    Raises:
        ConfigError: an option is invalid.
        SessionBusy: the session is being trained.
        TrainingError: there is nothing to evaluate yet, or the GPU is out of memory.
        ImageError, ModelError, StorageError: a file cannot be read or written.
    """
    if options.measure not in MEASURES:
        raise ConfigError("is an unknown measure", subject=repr(options.measure), fix=f"Choose {', '.join(MEASURES)}.")
    request = _request(session, options)
    if find(session) is not None:
        raise SessionBusy("training is running", where=session.name, fix="Wait until it ends or stop it, then retry.")
    refuse_elsewhere(session.path, "Or stop it there, then evaluate.")
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    candidates = [untrained(session, base)]
    if options.file is not None:
        candidates.append(file_of(session, base, options.file))
    else:
        checkpoints, skipped = checkpoints_of(session, base, options.checkpoints)
        candidates += checkpoints
        for note in skipped:
            report.note(note)
    measure, protocol = _choose(session, options, report)
    report.note(Note("evaluation started", ", ".join(candidate.label for candidate in candidates), measure.name))
    cache = PictureCache(session.path / FOLDER / "pictures", request, choose_device().precision)
    _draw(session, cache, candidates, protocol, report)
    measured = _measure(cache, candidates, protocol, measure, report)
    rows = [Row(candidate.label, found.values) for candidate, found in zip(candidates, measured, strict=True)]
    evaluation = Evaluation(
        session.name,
        _settings(cache),
        measure.name,
        [figure for figure in measure.figures if any(figure.name in row.values for row in rows)],
        protocol,
        candidates,
        measured,
        pick(rows, measure.figures),
    )
    return _write(session, evaluation, cache, options.file)


def _request(session: Session, options: Options) -> Request:
    """Return the settings of all pictures.

    Raises:
        ConfigError: a value is out of bounds.
    """
    samples, size = session.config.samples, session.config.resolution
    return Request(
        "",
        steps=samples.steps if options.steps is None else options.steps,
        guidance=samples.guidance if options.guidance is None else options.guidance,
        sampler=options.sampler or DEFAULT,
        width=size,
        height=size,
    )


def _choose(session: Session, options: Options, report: Report) -> tuple[Measure, Protocol]:
    """Return the measure and its prompts. Runs before anything is drawn so that errors come at once.

    Raises:
        ImageError: there are no instance images, or one cannot be read.
        ModelError: a model of the measure cannot be loaded.
        ConfigError: the measure `drawn` was requested for other instance images.
    """
    words, photos = words_of(session), photos_in(session.instance_images)
    if not photos:
        raise ImageError("there are no instance images to compare with", where=session.name, fix="Add photos first.")
    images = [read_photo(path) for path in photos]
    custom = custom_protocol(options.prompts, words, options.seeds) if options.prompts else None
    export = f"fastdb export {argument(session.name)}"
    on_mini = session.record.base_model.folder == MINI
    if options.measure == "drawn" or (options.measure == "auto" and on_mini):
        from fastdb.evaluation.mini_measures import Drawn, drawn_protocol
        from fastdb.world.readings import recognise

        subject = recognise(images)
        if subject is not None:
            return Drawn(subject), custom or drawn_protocol(words, subject, options.seeds)
        if options.measure == "drawn":
            raise ConfigError(
                "the instance images show no subject of the drawn world",
                where=session.name,
                fix=f"Choose --measure clip, which downloads CLIP once, or export without an evaluation: {export}",
            )
        report.note(Note("CLIP chosen", session.name))
    from fastdb.evaluation.clip_dino_measures import CLIP, DINO, Clip, Dino, Likeness

    device = choose_device().kind
    try:
        clip = Clip(options.clip or CLIP, device)
    except ModelError as error:
        fix = f"{error.fix.rstrip('.')}, or export without an evaluation: {export}"
        raise ModelError(error.what, where=error.where, fix=fix) from error
    try:
        dino = Dino(options.dino or DINO, device, local_only=options.dino is None)
    except ModelError:
        if options.dino is not None:
            raise
        report.note(Note("DINO missing", DINO))
        dino = None
    return Likeness(clip, dino, images, words.token), custom or default_protocol(words, options.seeds)


def _draw(
    session: Session, cache: PictureCache, candidates: Sequence[Candidate], protocol: Protocol, report: Report
) -> None:
    """Draw the missing pictures of all candidates."""
    shots = protocol.shots()
    missing = sum(len(cache.missing(candidate, shots)) for candidate in candidates)
    total, done = len(candidates) * len({(shot.prompt, shot.seed) for shot in shots}), 0
    if missing < total:
        report.note(Note("pictures reused", f"{total - missing} of {total}"))
    with report.progress("draw", "picture") as update, explain_out_of_memory("evaluation", _OUT_OF_MEMORY):

        def count(drawn: int) -> None:
            nonlocal done
            done += drawn
            update(done, missing)

        for candidate in candidates:
            session.check_there()
            cache.draw_missing(candidate, shots, count)


def _measure(
    cache: PictureCache, candidates: Sequence[Candidate], protocol: Protocol, measure: Measure, report: Report
) -> list[Measured]:
    """Measure every candidate's pictures and add the figures that compare it with the base."""
    results: list[Measured] = []
    with report.progress("measure", "checkpoint") as update, explain_out_of_memory("evaluation", _OUT_OF_MEMORY):
        for number, candidate in enumerate(candidates, start=1):
            measured = measure.read(cache.load(candidate, protocol.shots()))
            start = results[0].values if results else measured.values
            values = {**measured.values, **measure.compare(measured.values, start)}
            results.append(Measured(values, measured.pictures))
            update(number, len(candidates))
    return results


def _write(session: Session, evaluation: Evaluation, cache: PictureCache, file: Path | None) -> Evaluation:
    """Write the evaluation into the session's folder; return it with its notes and files."""
    folder, picked = session.path / FOLDER, evaluation.picked
    session.check_there()
    make_folder(folder)
    step = evaluation.candidates[picked.row].step
    title = f"{session.name}: {evaluation.measure}"
    grid = folder / ("grid.png" if file is None else f"{file.name}-grid.png")
    save_png(draw_grid(cache, evaluation, photos_in(session.instance_images), title), grid)
    files = [grid]
    if file is None and (curves := curves_of(evaluation)):
        title += " (green: recommended step, dashed: limit)"
        save_png(draw_curves(curves, title, step), folder / "curves.png")
        files.append(folder / "curves.png")
    files.append(folder / (PICKED if file is None else f"{file.name}.json"))
    write_json(files[-1], evaluation.as_json(cache))
    notes = [Note("checkpoint picked", picked.label, picked.reason), *picked.notes]
    if file is None:
        notes.append(Note("export command", f"{session.name} --step {step}"))
    else:
        notes.append(compare_export(evaluation, folder / PICKED))
    return replace(evaluation, notes=tuple(notes), files=tuple(files))


def _settings(cache: PictureCache) -> dict[str, object]:
    """Return the settings of pictures for `evaluation.json`."""
    request = cache.request
    return {
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "width": request.width,
        "height": request.height,
        "precision": cache.precision,
    }
