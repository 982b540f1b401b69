"""Evaluation of a session's checkpoints or of an exported file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastdb.checkpoints.retention import PICKED
from fastdb.errors import SessionBusy
from fastdb.evaluation.candidates import Candidate, PictureCache, checkpoints_of, file_of, untrained
from fastdb.evaluation.charts import curves_of, draw_curves, draw_grid
from fastdb.evaluation.choose import Pick, Row, pick
from fastdb.evaluation.choose_measure import choose_measure
from fastdb.evaluation.options import Options, command
from fastdb.evaluation.prompts import Protocol
from fastdb.evaluation.report import Evaluation, compare_export
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import save_png
from fastdb.inference.request import Request
from fastdb.inference.samplers import DEFAULT
from fastdb.measures.shots import Shot
from fastdb.measures.values import Measure, Measured
from fastdb.models.resolve import ensure_base
from fastdb.reporting import SILENT, Note, Report, argument, counted, format_bytes
from fastdb.runtime.device import choose_device, explain_out_of_memory
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_json
from fastdb.training.process import find

FOLDER = "evaluation"

_OUT_OF_MEMORY = "Close other programs that use the GPU and run the same command again; finished pictures are kept."


def evaluate_session(session: Session, options: Options, report: Report = SILENT) -> Evaluation:
    """Evaluate a session's checkpoints, or an exported file, against the untrained base.

    Existing pictures of the same weights, prompt, seed and settings are reused, so an interrupted evaluation resumes.
    Writes `evaluation.json`, `grid.png` and `curves.png` into the session's `evaluation/`; for a file `<its name>.json`
    and `<its name>-grid.png`.

    Raises:
        SessionBusy: the session is being trained.
        TrainingError: there is nothing to evaluate yet, or the GPU is out of memory.
        ImageError, ModelError, StorageError: a file cannot be read or written.
    """
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
    measure, protocol = choose_measure(session, base, options, report)
    report.note(Note("evaluation started", ", ".join(candidate.label for candidate in candidates), measure.name))
    cache = PictureCache(session.path / FOLDER / "pictures", request, choose_device().precision)
    drawing = _Drawing(session, cache, candidates, protocol, measure, report)
    drawing.draw(range(len(candidates)), protocol.seeds)
    if not measure.figures:
        return _write_sheet(drawing, _settings(cache), options)
    picked = drawing.pick()
    if options.until_decided:
        picked = _until_decided(drawing, picked, options.at_most)
    evaluation = Evaluation(
        session.name,
        _settings(cache),
        measure.name,
        [figure for figure in measure.figures if any(figure.name in found.values for found in drawing.measured)],
        protocol,
        candidates,
        drawing.measured,
        picked,
    )
    if picked.undecided and not options.until_decided:
        decide = command(session.name, replace(options, until_decided=True))
        open_question = [Note("undecided", picked.label, decide)]
    elif picked.undecided and not drawing.no_room:
        with_more = command(session.name, replace(options, at_most=2 * options.at_most))
        open_question = [Note("still undecided", str(options.at_most), with_more)]
    else:
        open_question = []
    return _write(session, evaluation, cache, options, [*measure.remarks(), *open_question])


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


@dataclass
class _Drawing:
    """The pictures of all candidates, drawn and measured so far; the untrained base is the first."""

    session: Session
    cache: PictureCache
    candidates: Sequence[Candidate]
    protocol: Protocol
    measure: Measure
    report: Report
    measured: list[Measured] = field(default_factory=list)
    no_room: bool = False

    def draw(self, numbers: Sequence[int], passes: int) -> None:
        """Draw the missing pictures of some candidates up to a number of passes, and measure them.

        Passes beyond those of the protocol show the subject only.
        """
        shots = [*self.protocol.shots(), *self.protocol.more(passes)]
        missing = sum(len(self.cache.missing(self.candidates[number], shots)) for number in numbers)
        total, done = len(numbers) * len({(shot.prompt, shot.seed) for shot in shots}), 0
        if missing < total and not self.measured:
            self.report.note(Note("pictures reused", f"{total - missing} of {total}"))
        with self.report.progress("draw", "picture") as update, explain_out_of_memory("evaluation", _OUT_OF_MEMORY):

            def count(drawn: int) -> None:
                nonlocal done
                done += drawn
                update(done, missing)

            for number in numbers:
                self.session.check_there()
                self.cache.draw_missing(self.candidates[number], shots, count)
        self._measure(numbers, shots)

    def _measure(self, numbers: Sequence[int], shots: Sequence[Shot]) -> None:
        """Measure the pictures of some candidates and add the figures that compare them with the base."""
        with (
            self.report.progress("measure", "checkpoint") as update,
            explain_out_of_memory("evaluation", _OUT_OF_MEMORY),
        ):
            for done, number in enumerate(numbers, start=1):
                measured = self.measure.read(self.cache.load(self.candidates[number], shots))
                start = self.measured[0].values if self.measured else measured.values
                values = {**measured.values, **self.measure.compare(measured.values, start)}
                self.measured[number : number + 1] = [replace(measured, values=values)]
                update(done, len(numbers))

    def pick(self) -> Pick:
        """Choose a checkpoint by its figures."""
        pairs = zip(self.candidates, self.measured, strict=True)
        return pick([Row(candidate.label, found.values) for candidate, found in pairs], self.measure.figures)


def _until_decided(drawing: _Drawing, picked: Pick, at_most: int) -> Pick:
    """Draw further passes of the checkpoints in question until they are decided or have `at_most` pictures each."""
    protocol, report = drawing.protocol, drawing.report
    passes, last = protocol.seeds, at_most // max(protocol.goals_in_a_pass(), 1)
    while picked.undecided and passes < last:
        passes = min(2 * passes, last)
        shots = protocol.more(passes)
        missing = sum(len(drawing.cache.missing(drawing.candidates[number], shots)) for number in picked.undecided)
        names = ", ".join(drawing.candidates[number].label for number in picked.undecided)
        size = missing * drawing.cache.bytes_of_a_picture(drawing.candidates[0], protocol.shots())
        free = shutil.disk_usage(drawing.session.path).free
        if size > free:
            report.note(Note("no room for pictures", names, f"{format_bytes(size)} for {missing} pictures"))
            drawing.no_room = True
            return picked
        report.note(Note("more pictures", names, f"{counted(missing, 'picture')}, {format_bytes(size)}"))
        drawing.draw(picked.undecided, passes)
        picked = drawing.pick()
    return picked


def _write_sheet(drawing: _Drawing, settings: dict[str, object], options: Options) -> Evaluation:
    """Write the pictures of all candidates side by side, where nothing measures them; return the evaluation."""
    session = drawing.session
    nobody = Pick(-1, "", "nothing is measured")
    candidates, protocol, measured = drawing.candidates, drawing.protocol, drawing.measured
    evaluation = Evaluation(session.name, settings, drawing.measure.name, [], protocol, candidates, measured, nobody)
    session.check_there()
    grid = session.path / FOLDER / ("grid.png" if options.file is None else f"{options.file.name}-grid.png")
    make_folder(grid.parent)
    save_png(draw_grid(drawing.cache, evaluation, photos_in(session.instance_images), session.name), grid)
    losses = [
        f"{candidate.label}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in candidate.fixed_noise.items())
        for candidate in candidates
        if candidate.fixed_noise
    ]
    notes = [Note("side by side", session.name), *([Note("fixed noise", reason="; ".join(losses))] if losses else [])]
    return replace(evaluation, notes=tuple(notes), files=(grid,))


def _write(
    session: Session, evaluation: Evaluation, cache: PictureCache, options: Options, remarks: Sequence[Note]
) -> Evaluation:
    """Write the evaluation into the session's folder; return it with its notes and files."""
    folder, picked, file = session.path / FOLDER, evaluation.picked, options.file
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
    notes = [Note("checkpoint picked", picked.label, picked.reason), *picked.notes, *remarks]
    if file is None:
        notes.append(Note("export command", picked.label, f"{argument(session.name)} --step {step}"))
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
