"""Verb that follows a running training without control over it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastdb.errors import TrainingError
from fastdb.reporting import SILENT, Note, Report, argument
from fastdb.sessions.session import Session, SessionLike
from fastdb.training import process

_PROGRESS = frozenset({"plan", "progress", "stage", "step", "end"})


def follow(session: SessionLike, root: str | Path | None = None, *, report: Report = SILENT) -> str:
    """Report the events of a session's trainer until it ends; interrupting the caller leaves it running.

    Of the time before only the progress is reported.

    Returns:
        How it ended; "left" after an interruption; empty if no process of this machine trains the session.

    Raises:
        TrainingError: the trainer failed or was killed.
    """
    opened = Session.open(session, root)
    running = process.find(opened)
    if running is None:
        report.note(Note("no trainer", opened.name))
        return ""
    began = time.time()
    end: dict[str, Any] = {}
    report.note(Note("watching trainer", opened.name, str(running.pid)))
    try:
        for event in running.follow():
            if event["event"] in _PROGRESS or event.get("time", began) >= began:
                report.event(event)
            end = event
    except KeyboardInterrupt:
        report.event({"event": "end", "outcome": "left"})
        report.note(Note("trainer continues", opened.name, str(running.pid)))
        return "left"
    except TrainingError as error:
        report.event({"event": "end", "outcome": "failed"})
        raise TrainingError(
            error.what,
            where=error.where,
            fix=f"Resume from the last checkpoint with: fastdb train {argument(opened.name)}",
        ) from error
    return _outcome(opened.name, end, report)


def _outcome(name: str, end: dict[str, Any], report: Report) -> str:
    """Report how a training ended.

    Raises:
        TrainingError: it failed.
    """
    if end["outcome"] in ("failed", "crashed"):
        raise TrainingError(
            end.get("message") or "the trainer crashed", where=name, fix=f"Resume with: fastdb train {argument(name)}"
        )
    report.note(Note("training stopped" if end["outcome"] == "stopped" else "training finished", name))
    return str(end["outcome"])
