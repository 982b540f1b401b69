"""The Train cell: train, resume, extend, watch or stop, and release the machine at the end."""

from __future__ import annotations

from fastdb import console
from fastdb.checkpoints.progress import STAGES, how_far, progress_of, steps_of
from fastdb.commands import training
from fastdb.commands.follow import follow
from fastdb.errors import ConfigError, TrainingError
from fastdb.notebook.leaving import disconnect
from fastdb.notebook.panel import Panel
from fastdb.notebook.picture_cells import export
from fastdb.notebook.report import NotebookReport
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.session import Session
from fastdb.training import process

_started_over: set[str] = set()
"""Lineages that began in this kernel by `start_over`, so that a tick which was left on does not start again."""


def train(
    session: Session,
    more_steps: str = "",
    *,
    stop: bool = False,
    watch_only: bool = False,
    start_over: bool = False,
    disconnect_when_done: bool = False,
) -> None:
    """Train a session or resume; follow a trainer that runs already.

    An interruption asks the trainer to save and stop, and raises an error, so that the cells after this one do not run.

    Args:
        more_steps: steps to add to the UNet stage of a finished training.
        stop: ask a trainer that runs to save and stop, and wait for it.
        watch_only: only follow a trainer that runs; an interruption leaves it running.
        start_over: set all checkpoints aside first, once per kernel.
        disconnect_when_done: at the end also export, wait for Google Drive, and release Colab's machine.

    Raises:
        ConfigError: a field is invalid, or ticks contradict each other.
        TrainingError: training was stopped, or cannot start or resume.
        FastDBError: the export or the upload failed; the machine is kept.
    """
    session = Session.open(session)
    _check_ticks(more_steps, stop=stop, watch_only=watch_only, start_over=start_over)
    report = NotebookReport()
    if stop or watch_only:
        if process.find(session) is None:
            elsewhere = in_use(session.path)
            where = f"; it is being trained elsewhere: {elsewhere}" if elsewhere else ""
            console.say(f"{session.name} is not being trained on this machine{where}")
            return
        if stop:
            training.stop(session, report=report)
        with Panel(session) as panel:
            outcome = follow(session, report=panel)
        if not outcome and watch_only:
            return
        outcome = outcome or "stopped"
    else:
        _add_steps(session, more_steps)
        restart = start_over and session.record.lineage not in _started_over
        if start_over and not restart:
            console.say("Training was started over already; resuming it. Untick start_over")
        try:
            with Panel(session) as panel:
                outcome = training.train(session, restart=restart, on_interrupt="stop", report=panel)
        finally:
            lineage = Session.open(session).record.lineage
            if lineage != session.record.lineage:
                _started_over.add(lineage)
    if outcome != "finished":
        raise _stopped(session, outcome)
    if disconnect_when_done:
        export(session, "safetensors and ckpt")
        disconnect(session)


def _check_ticks(more_steps: str, **ticks: bool) -> None:
    """Raise if fields contradict each other.

    Raises:
        ConfigError: naming them.
    """
    chosen = [name for name, ticked in ticks.items() if ticked] + (["more_steps"] if more_steps.strip() else [])
    if len(chosen) > 1:
        raise ConfigError(
            "cannot be combined", subject=" and ".join(chosen), fix="Leave all but one empty or unticked."
        )


def _add_steps(session: Session, more_steps: str) -> None:
    """Extend a finished training; one that is not finished, or was extended by the same number, stays as it is.

    Raises:
        ConfigError: it is no number of steps.
    """
    text = more_steps.strip()
    if not text:
        return
    if not (text.isdecimal() and int(text)):
        raise ConfigError(
            f"{text!r} is not a number of steps", where="more_steps", fix="Enter one such as 200, or empty the field."
        )
    done = progress_of(session)
    extended = session.record.extended
    if process.find(session) is not None or any(done[stage] < steps_of(session, stage) for stage in STAGES):
        console.say(
            f"Training is not finished yet ({how_far(session, done)}), so no steps were added. It is resumed now; run "
            "this cell once more afterwards to add them"
        )
    elif extended and extended[-1].steps == int(text):
        console.say(
            f"The last extension added {text} steps already, so none were added. For as many again, use "
            f"fastdb.extend(session, {text})"
        )
    else:
        extended_session = training.extend(session, int(text))
        console.say(f"Added {text} steps: {extended_session.config.unet.all_steps} of the UNet in all")


def _stopped(session: Session, outcome: str) -> TrainingError:
    session = Session.open(session)
    so_far = how_far(session, progress_of(session))
    if outcome == "left":
        return TrainingError(
            f"training continues ({so_far}); the cells below were not run",
            where=session.name,
            fix="Run the Train cell again to follow it.",
        )
    return TrainingError(
        f"training was stopped at {so_far}; the cells below were not run",
        where=session.name,
        fix="Run the Train cell again to resume.",
    )
