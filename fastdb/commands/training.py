"""Verbs that train: train, extend, stop, publish."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import check_step, progress_of
from fastdb.checkpoints.publish import Publishing, nothing_published, pending
from fastdb.checkpoints.publishing_watch import Stalled, publish_rest, publisher_of
from fastdb.commands.differences import (
    agreed_settings,
    changed_rates,
    report_changed,
    setting_differences,
)
from fastdb.commands.session_warnings import setting_warnings
from fastdb.config import Config, Extension, build
from fastdb.errors import ConfigError, SessionBusy, StorageError, TrainingError
from fastdb.models.base_identity import check_not_earlier_mini
from fastdb.models.resolve import ensure_base
from fastdb.reporting import SILENT, Note, Report, argument, counted
from fastdb.runtime.device_lock import check_device
from fastdb.sessions.events import EventLog, earlier_events
from fastdb.sessions.identity import claim_work, restarted
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike
from fastdb.storage.set_aside import move_aside
from fastdb.training import process
from fastdb.training.preflight import ENDS, preflight
from fastdb.training.schedules import default_peak, with_rates_from, without_later_ends

PUBLISH_WITHIN = 30.0
"""Seconds of failures after which `publish` gives up."""


def train(
    session: SessionLike,
    *,
    settings: Mapping[str, Any] | None = None,
    keep_settings: bool = False,
    restart: bool = False,
    from_step: int | None = None,
    take_over: bool = False,
    device: str = "",
    follow: bool = True,
    on_interrupt: Literal["stop", "leave", ""] = "",
    root: str | Path | None = None,
    report: Report = SILENT,
) -> str:
    """Train a session from its last checkpoint, in a process of its own that outlives the caller.

    A trainer that runs on this machine is followed.

    Args:
        settings: dotted names and values, written into the session before training has begun.
        keep_settings: if training has begun with other settings, report them and keep the session's, instead of an
            error. Settings of checkpoints, samples and the environment may change at any time.
        restart: set all checkpoints aside first.
        from_step: set the newer checkpoints of the UNet stage aside; a rate in `settings` holds from this step on.
        on_interrupt: let the trainer save and stop, or leave it; by default only one that this call started stops.
        take_over: train even if another machine does; that trainer saves on its own disk and stops.
        device: `cuda:N` or `cpu`; by default the first GPU that no other trainer uses, if there is a GPU.

    Returns:
        "finished", "stopped" on request, "interrupted" by the caller, "left" running, or "started" without `follow`.

    Raises:
        SessionBusy: another machine trains it, or a trainer runs with other settings.
        FastDBError: training cannot start or resume.
    """
    check_device(device, os.environ)
    session = Session.open(session, root)
    if restart and from_step is not None:
        raise ConfigError("--from-step and --restart cannot be combined", fix="Leave out one of them and run it again.")
    running = process.find(session)
    if running is None and not take_over:
        refuse_elsewhere(session.path)
    again = restart or from_step is not None
    if running is not None and (again or device):
        raise SessionBusy("is being trained", subject=session.name, fix=_stop_first(session))
    config = _agreed(session, settings, (from_step or 0) if again else None, running is not None, keep_settings, report)
    if running is None:
        running, interrupted = _start(_prepare(session, config, restart, from_step, report), take_over, device, report)
    else:
        interrupted, on_interrupt = False, on_interrupt or "leave"
        if follow:
            report.note(Note("following trainer", session.name, str(running.pid)))
    if not follow:
        report.note(Note("trainer started", session.name, str(running.pid)))
        return "started"
    while not (outcome := _follow(session, running, report, on_interrupt == "leave", interrupted)):
        # Another process of this machine began to train it at the same moment, and may have ended by now.
        running = process.find(session) or process.start(session, take_over, device)
        report.note(Note("following trainer", session.name, str(running.pid)))
    return outcome


def extend(
    session: SessionLike,
    steps: int,
    *,
    schedule: Literal["hold", "rewarm", "decay"] = "rewarm",
    learning_rate: float | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Session:
    """Add steps to the UNet stage, which the next `train` runs; the training so far stays as it is.

    A text encoder that trains beside the UNet does not train in them, unless it has steps of its own left.

    Args:
        schedule: the learning rate of the steps, see `fastdb.training.schedules`: "hold" is constant, "decay" falls
            to 0, "rewarm" rises first.
        learning_rate: the highest rate; half of the UNet's by default.

    Raises:
        ConfigError: a value is out of bounds.
        SessionBusy: the session is being trained.
        StorageError: the session's folder cannot be written.
        TrainingError: the session began with a mini that this version does not contain.
    """
    session = Session.open(session, root)
    peak = default_peak(session.config.unet) if learning_rate is None else learning_rate
    refuse_elsewhere(session.path, "Or stop it there, and extend then.")
    extension = build(Extension, {"steps": steps, "schedule": schedule, "learning_rate": peak})
    if process.find(session) is not None:
        raise SessionBusy(
            "training is running; its step count cannot be changed now",
            where=session.name,
            fix=f"Stop it first, then extend and train again: fastdb stop {argument(session.name)}",
        )
    check_not_earlier_mini(session.record.base_model)
    session = session.with_extension(extension)
    total = f"{session.record.extended[-1]}: {counted(session.config.unet.all_steps, 'step')} in all"
    report.note(Note("session extended", session.name, total))
    return session


def remove_extensions(session: SessionLike, *, root: str | Path | None = None, report: Report = SILENT) -> Session:
    """Remove the extensions of the UNet stage of which no step was trained; the others stay.

    Raises:
        ConfigError: there is none.
        SessionBusy: the session is being trained.
        StorageError: the session's folder cannot be written.
    """
    session = Session.open(session, root)
    refuse_elsewhere(session.path, "Or stop it there, and remove them then.")
    if process.find(session) is not None:
        raise SessionBusy("is being trained", subject=session.name, fix=_stop_first(session))
    done, planned = progress_of(session)["unet"], session.extensions
    kept = [extension for extension in planned if extension.after < done]
    if len(kept) == len(planned):
        raise ConfigError(
            "has no extension of which no step was trained",
            subject=session.name,
            fix=f"To go back to an earlier checkpoint: fastdb train {argument(session.name)} --from-step N",
        )
    values = [extension.model_dump() for extension in session.config.unet.extensions[: len(kept)]]
    session = session.with_config(session.config.changed({"unet.extensions": values}))
    removed = counted(len(planned) - len(kept), "extension")
    report.note(Note("extensions removed", removed, f"{counted(session.config.unet.all_steps, 'step')} in all"))
    return session


def stop(session: SessionLike, root: str | Path | None = None, *, report: Report = SILENT) -> bool:
    """Ask the trainer of a session to save and stop; return whether there was one."""
    session = Session.open(session, root)
    running = process.find(session)
    if running is None:
        report.note(Note("no trainer", session.name))
        return False
    running.stop()
    report.note(Note("stop requested", session.name, str(running.pid)))
    return True


def publish(session: SessionLike, root: str | Path | None = None, *, report: Report = SILENT) -> Session:
    """Publish the checkpoints that are on this machine only to the session's folder; a trainer does so by itself.

    Raises:
        SessionBusy: the session is being trained.
        StorageError: its disk is full, read-only or not available.
        ModelError: its base model is not available.
    """
    session = Session.open(session, root)
    if process.find(session) is not None:
        raise SessionBusy(
            "is being trained; the trainer publishes its own checkpoints",
            subject=session.name,
            fix="Wait until it has finished.",
        )
    refuse_elsewhere(session.path)
    session = _claimed(session, report)
    if pending(session):
        with report.progress("base model", "B") as update:
            base = ensure_base(session, update)

        # `free --unfinished` reads in it which checkpoints were ever published.
        work = session.work
        log = EventLog(work / f"publish-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S-%f')}.jsonl")

        def emit(kind: str, /, **fields: Any) -> None:
            report.event({"event": kind, **fields})
            if kind == "published":
                log.emit(kind, **fields)

        try:
            publish_rest(Publishing(session, base.folder, emit, patience=PUBLISH_WITHIN), work)
        except Stalled as error:
            other = "".join(f", end process {pid}" for pid in publisher_of(work) if pid != os.getpid())
            raise StorageError(
                f"publishing does not advance: {error.what}",
                where=session.name,
                fix=f"Check the session's disk{other} and run the same command again.",
            ) from error
        finally:
            log.close()
            report.event({"event": "end", "outcome": "published"})
    report.note(Note("all published", str(session.checkpoints)))
    return session


def _prepare(session: Session, config: Config, restart: bool, from_step: int | None, report: Report) -> Session:
    """Check a session with its new settings, write them, and set aside checkpoints it must not resume from.

    Raises:
        FastDBError: training cannot start or resume; the session is unchanged.
    """
    if from_step is not None:
        check_step(session, from_step)
    if restart:
        config = config.changed({"text_encoder.settled_after": ()})
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    planned = replace(session, record=session.record.model_copy(update={"config": config}))
    for note in preflight(planned, base, restart, from_step):
        report.note(note)
    session = _claimed(session, report)
    with ExitStack() as locks:
        # Before anything is written, because another process may hold them.
        if restart:
            locks.enter_context(process.training_lock(session.path))
        if restart or from_step is not None:
            locks.enter_context(nothing_published(session))
        if config != session.config:
            session = _with_settings(session, config, from_step or 0, report)
            for note in setting_warnings(session):
                report.note(note)
        if not restart and from_step is None:
            return session
        first = 0 if restart else (from_step or 0) + 1
        stage = None if restart else "unet"
        folders = session.checkpoint_folders[::-1]
        moves = [
            move_aside(folder, [entry.path for entry in complete(folder, stage) if entry.step >= first])
            for folder in folders
        ]
        if restart:
            session = restarted(session)
            folders = session.checkpoint_folders[::-1]
            moves = [aside and folder / aside.name for folder, aside in zip(folders, moves, strict=True)]
    if moved := [str(folder) for folder in moves if folder is not None]:
        which = "all checkpoints" if restart else f"the checkpoints after step {from_step}"
        report.note(Note("checkpoints set aside", " and ".join(moved), which))
    else:
        report.note(Note("no checkpoints to set aside", session.name))
    return session


def _with_settings(session: Session, config: Config, from_step: int, report: Report) -> Session:
    """Write other settings and report them; rates that hold from a step on are recorded in the history."""
    rates = changed_rates(session.config, config, from_step)
    differing = [
        each
        for each in setting_differences(session.config, config)
        # From a later step on, `rates` has them; ends are reported as what they mean.
        if not (from_step and each.name.endswith(".rate_changes")) and each.name not in ENDS
    ]
    report_changed([*differing, *rates], report)
    after = f"unet step {from_step}"
    if config.unet.settled_after != session.config.unet.settled_after:
        session = session.with_revision(config, after, ["unet.settled_after=none"], "the planned steps were resumed")
        report.note(Note("planned steps resumed", session.name, counted(config.unet.all_steps, "step")))
    return session.with_revision(config, after, [str(rate) for rate in rates]) if rates else session.with_config(config)


def _agreed(
    session: Session,
    asked: Mapping[str, Any] | None,
    beginning: int | None,
    running: bool,
    keep: bool,
    report: Report,
) -> Config:
    """Return the settings to train with; `beginning` is the step to begin from, if that was chosen."""
    if beginning is not None:
        return with_rates_from(without_later_ends(session.config, beginning), asked or {}, beginning)
    return agreed_settings(session, asked or {}, running, keep, report)


def _stop_first(session: Session) -> str:
    return f"Stop it first: fastdb stop {argument(session.name)}"


def _claimed(session: Session, report: Report) -> Session:
    """Make the work on this machine the session's own, and report if it became a session of its own."""
    session, notes = claim_work(session)
    for note in notes:
        report.note(note)
    return session


def _start(session: Session, take_over: bool, device: str, report: Report) -> tuple[process.Running, bool]:
    """Start a trainer, and return it with whether the caller was interrupted meanwhile."""
    # Before there is a trainer that an interruption would have to stop.
    report.earlier(earlier_events(session.logs))
    with process.interrupts_kept() as interruptions:
        running = process.start(session, take_over, device)
    return running, bool(interruptions)


def _follow(session: Session, running: process.Running, report: Report, leave: bool, interrupted: bool) -> str:
    """Report a trainer's events until it ends.

    Args:
        leave: an interruption leaves it running; else it asks the trainer to save and stop, and a second one leaves.
        interrupted: the caller was interrupted while the trainer started.

    Returns:
        How it ended; empty if another process was training the session already.
    """
    seen, trained = 0, False
    end: dict[str, Any] = {}
    if interrupted:
        _ask_to_stop(session, running, report)
    while not end:
        try:
            for event in running.follow(skip=seen):
                report.event(event)
                seen += 1
                trained = trained or event["event"] == "stage"
                if event["event"] == "end":
                    end = event
        except KeyboardInterrupt:
            if leave or interrupted:
                report.event({"event": "end", "outcome": "left"})
                report.note(Note("left stopping" if interrupted else "left running", session.name, str(running.pid)))
                return "interrupted" if interrupted else "left"
            interrupted = True
            _ask_to_stop(session, running, report)
        except TrainingError:
            report.event({"event": "end", "outcome": "failed"})
            raise
    if end.get("too_late"):
        return ""
    if end["outcome"] == "failed":
        raise TrainingError(end["message"])
    if end["outcome"] == "crashed":
        raise RuntimeError(f"the trainer crashed; this is a bug in fastdb:\n{end['traceback']}")
    finished = "training finished" if trained else "nothing to train"
    report.note(Note("training stopped" if end["outcome"] == "stopped" else finished, session.name))
    return "interrupted" if interrupted and end["outcome"] == "stopped" else str(end["outcome"])


def _ask_to_stop(session: Session, running: process.Running, report: Report) -> None:
    report.note(Note("stopping trainer", session.name))
    running.stop()
