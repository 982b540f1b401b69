"""The verbs that lead to a trained session, used alike by the notebooks and the command line; `results` has the rest.

Nothing here needs torch until a verb that does is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fastdb import console
from fastdb.commands.sessions import SessionLike, open_session
from fastdb.config import Config, Extension, build
from fastdb.errors import ConfigError, SessionBusy, TrainingError
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session

PUBLISH_WITHIN = 30.0
"""Seconds of failures after which a person is told rather than made to wait."""


def train(
    session: SessionLike,
    *,
    settings: Mapping[str, Any] | None = None,
    restart: bool = False,
    from_step: int | None = None,
    take_over: bool = False,
    follow: bool = True,
    root: str | Path | None = None,
) -> str:
    """Train a session from where it stands, in a process of its own, and show what that says.

    A trainer that runs already on this machine is followed. One of another machine is left alone, unless `take_over`
    is true: then that one saves on its own disk and stops as soon as it sees it. Interrupting the caller asks the
    trainer to save and stop; when the caller just goes (a closed tab or terminal, a kernel that restarts), the
    trainer goes on. `restart` sets all checkpoints aside before, `from_step` those of the UNet's stage that are newer.

    Returns:
        "finished", "stopped", or "started" when not following.

    Raises:
        SessionBusy: another machine trains it, or it is to be trained otherwise than it is now.
        FastDBError: training cannot start or go on.
    """
    from fastdb.training import process

    session = open_session(session, root)
    config = session.config.changed(settings or {})
    if restart and from_step is not None:
        raise ConfigError("is no way to begin anew", where="--from-step", fix="Give it, or --restart, not both.")
    running = process.find(session)
    if running is not None:
        if config != session.config or restart or from_step is not None:
            raise SessionBusy(
                "is being trained already", where=session.name, fix=f"Stop that first: fastdb stop {session.name}"
            )
        console.say(f"{session.name} is being trained already (process {running.pid}); following it")
    else:
        if not take_over:
            refuse_elsewhere(session.path)
        running = process.start(_ready(session, config, restart, from_step), take_over)
    if not follow:
        console.say(f"{session.name} trains in process {running.pid}; follow it with: fastdb train {session.name}")
        return "started"
    while not (outcome := _follow(session, running)):
        # Another process of this machine has begun to train it in the same moment, and may be done by now.
        running = process.find(session) or process.start(session, take_over)
        console.say(f"{session.name} is being trained already (process {running.pid}); following it")
    return outcome


def _ready(session: Session, config: Config, restart: bool, from_step: int | None) -> Session:
    """Make a session ready for a trainer: looked at with its new settings, which are written, and checkpoints that it
    is not to go on from set aside. A refusal leaves it as it is.

    Raises:
        FastDBError: training cannot start or go on so.
    """
    from fastdb.checkpoints.checkpoint import complete
    from fastdb.checkpoints.progress import check_step
    from fastdb.checkpoints.publish import nothing_published
    from fastdb.models.resolve import ensure_base
    from fastdb.storage.set_aside import move_aside
    from fastdb.training.preflight import preflight

    if from_step is not None:
        check_step(session, from_step)
    with console.bar("base model", "B") as update:
        base = ensure_base(session, update)
    changed = replace(session, record=session.record.model_copy(update={"config": config}))
    for note in preflight(changed, base, restart, from_step):
        console.say(note if isinstance(note, str) else console.sentence(note))
    if config != session.config:
        session = session.with_config(config)
    places = session.checkpoint_folders[::-1]
    if restart:
        with nothing_published(session):
            moves = [move_aside(folder, [checkpoint.path for checkpoint in complete(folder)]) for folder in places]
            session = session.with_new_lineage()
        for folder in filter(None, moves):
            console.say(f"earlier checkpoints are kept in {folder}")
        if not any(moves):
            console.say("there were no checkpoints")
    elif from_step is not None:
        with nothing_published(session):
            moves = [
                move_aside(folder, [entry.path for entry in complete(folder, "unet") if entry.step > from_step])
                for folder in places
            ]
        for folder in filter(None, moves):
            console.say(f"checkpoints after step {from_step} of the UNet's stage are kept in {folder}")
        if not any(moves):
            console.say(f"there were no checkpoints after step {from_step} of the UNet's stage")
    return session


def extend(
    session: SessionLike,
    steps: int,
    *,
    schedule: Literal["hold", "rewarm", "decay"] = "rewarm",
    learning_rate: float | None = None,
    root: str | Path | None = None,
) -> Session:
    """Give the UNet's stage further steps, which the next `train` takes: what was trained so far stays as it is.

    `schedule` says how their rate goes, see `fastdb.training.schedules`: "hold" keeps `learning_rate`, "decay" begins
    with it and falls to 0, "rewarm" rises to it first. It is half of the UNet's where none is given. A text encoder
    that trains beside the UNet stands still in them, unless it has steps of its own left.

    Raises:
        ConfigError: a value is out of bounds.
        SessionBusy: the session is being trained.
        StorageError: the session's folder cannot be written.
    """
    from fastdb.training import process
    from fastdb.training.schedules import default_peak

    session = open_session(session, root)
    peak = default_peak(session.config.unet) if learning_rate is None else learning_rate
    more = build(Extension, {"steps": steps, "schedule": schedule, "learning_rate": peak})
    if process.find(session) is not None:
        raise SessionBusy(
            "is being trained, to an end that is settled",
            where=session.name,
            fix=f"Stop that first, and go on when it is extended: fastdb stop {session.name}",
        )
    session = session.with_extension(more)
    console.say(f"{session.name} is extended {session.record.extended[-1]}: {session.config.unet.all_steps} in all")
    console.say(f"train them with: fastdb train {session.name}")
    return session


def _follow(session: Session, running: Any) -> str:
    """Show a trainer's events until it ends; an interruption asks it to save and stop, a second one lets it be.

    Returns how it ended; nothing where it came too late to train.
    """
    view, seen, asked = console.TrainingView(), 0, False
    end: dict[str, Any] = {}
    while not end:
        try:
            for event in running.follow(skip=seen):
                view.show(event)
                seen += 1
                if event["event"] == "end":
                    end = event
        except KeyboardInterrupt:
            if asked:
                view.close()
                raise
            asked = True
            console.say("asking the trainer to save and stop; interrupt again to leave it to that")
            running.stop()
        except TrainingError:
            view.close()
            raise
    if end.get("too_late"):
        return ""
    if end["outcome"] == "failed":
        raise TrainingError(end["message"])
    if end["outcome"] == "crashed":
        raise RuntimeError(f"the trainer met a bug of fastdb:\n{end['traceback']}")
    if end["outcome"] == "stopped":
        console.say(f"stopped; go on with: fastdb train {session.name}")
    else:
        console.say(f"trained; make the file to use with: fastdb export {session.name}")
    return str(end["outcome"])


def stop(session: SessionLike, root: str | Path | None = None) -> bool:
    """Ask the trainer of a session to save and stop; says whether there was one."""
    from fastdb.training.process import find

    session = open_session(session, root)
    running = find(session)
    if running is None:
        console.say(f"{session.name} is not being trained on this machine")
        return False
    running.stop()
    console.say(f"asked process {running.pid} to save and stop")
    return True


def publish(session: SessionLike, root: str | Path | None = None) -> Session:
    """Bring the checkpoints that lie on this machine alone into the session's folder; a trainer does so by itself.

    Raises:
        SessionBusy: it is being trained.
        StorageError: its disk is full, read-only or away.
        ModelError: its base model cannot be had.
    """
    from fastdb.checkpoints.publish import Publishing, pending
    from fastdb.models.resolve import ensure_base
    from fastdb.training.process import find

    session = open_session(session, root)
    if find(session) is not None:
        raise SessionBusy("is being trained, and its trainer publishes", where=session.name, fix="Let it end.")
    refuse_elsewhere(session.path)
    if pending(session):
        view = console.TrainingView()

        def emit(kind: str, /, **fields: Any) -> None:
            view.show({"event": kind, **fields})

        with console.bar("base model", "B") as update:
            base = ensure_base(session, update)
        try:
            Publishing(session, base.folder, emit, patience=PUBLISH_WITHIN).run(lambda: True)
        finally:
            view.close()
    console.say(f"every checkpoint to go on from is in {session.checkpoints}")
    return session
