"""The trainer's process: `python -m fastdb.training SESSION_FOLDER EVENTS_FILE`.

SIGTERM and SIGINT ask it to save a checkpoint after the step it is in, and to end.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from fastdb.errors import FastDBError, StorageError
from fastdb.runtime.quiet import hush_libraries
from fastdb.sessions.session import Session
from fastdb.storage.durable import write_text
from fastdb.training.events import EventLog
from fastdb.training.lock import training_lock
from fastdb.training.process import announce


def main(folder: Path, events: Path) -> int:
    """Train the session in `folder`, write what happens to `events`; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log = EventLog(events)
    try:
        with training_lock(folder):
            announce(folder, events)
            end = _train(folder, log, stop)
            _keep(log, folder, end)
    except FastDBError as error:
        end = {"outcome": "failed", "message": str(error)}
    # Last of all, with the lock released: whoever reads this may start the next trainer at once.
    log.tell("end", **end)
    log.close()
    return {"failed": 2, "crashed": 1}.get(end["outcome"], 0)


def _train(folder: Path, log: EventLog, stop: threading.Event) -> dict[str, Any]:
    """One life of the trainer, and how it ended."""
    try:
        session = Session.open(folder)
        hush_libraries()
        # Not at the top: a signal that comes while torch is loading must find its handler in place.
        from fastdb.training.trainer import Trainer

        return {"outcome": Trainer(session, log.tell, stop).run()}
    except FastDBError as error:
        return {"outcome": "failed", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug: told to the follower with its traceback, and its exit code is 1
        message = f"{type(error).__name__}: {error}"
        return {"outcome": "crashed", "message": message, "traceback": traceback.format_exc()}


def _keep(log: EventLog, folder: Path, end: dict[str, Any]) -> None:
    """Copy what this run said into the session's own logs."""
    try:
        (folder / "logs").mkdir(exist_ok=True)
        text = log.path.read_text(encoding="utf-8") + json.dumps({"event": "end", **end}) + "\n"
        write_text(folder / "logs" / log.path.name, text)
    except (StorageError, OSError) as error:
        log.tell("warning", message=f"the log of this run stays on this machine only, at {log.path}: {error}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
