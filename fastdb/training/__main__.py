"""The trainer's process, `python -m fastdb.training SESSION_FOLDER EVENTS_FILE [--take-over] [--device cuda:N]`.

SIGTERM or SIGINT makes it save a checkpoint after the current step and end; a second signal makes it end before that is
published.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdb.checkpoints.publishing_watch import in_time
from fastdb.console.streams import forgiving_streams
from fastdb.errors import MORE_MEMORY, FastDBError, SessionBusy, first_line, is_out_of_memory, out_of_memory
from fastdb.reporting import Note
from fastdb.runtime.device_lock import check_device, device_lock
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.sessions.events import EventLog, read_events
from fastdb.sessions.file_hashes import record_files
from fastdb.sessions.lease import Guard, take
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import write_text
from fastdb.training.process import DEVICE, TAKE_OVER, training_lock


def main(folder: Path, events: Path, take_over: bool = False, device: str = "") -> int:
    """Train the session in `folder`, write events to the file `events`, and return the exit code."""
    stop, leave = threading.Event(), threading.Event()

    def on_signal(*_: Any) -> None:
        (leave if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    log = EventLog(events)
    try:
        # Before the lock, so that each process of a launcher reports the same.
        check_device(device, os.environ)
        with training_lock(folder, events), device_lock(device, folder.name):
            end = _train(folder, log, stop, leave, take_over, device)
    except SessionBusy as error:
        # No fault of the session: the caller can follow the other trainer.
        end = {"outcome": "failed", "message": str(error), "too_late": True}
    except FastDBError as error:
        end = {"outcome": "failed", "message": str(error)}
    # Last, with the lock released: a reader of this event may start the next trainer at once.
    log.emit("end", **end)
    log.close()
    return {"failed": 2, "crashed": 1}.get(end["outcome"], 0)


def _train(
    folder: Path, log: EventLog, stop: threading.Event, leave: threading.Event, take_over: bool, device: str
) -> dict[str, Any]:
    """Train under the session's lease and return the `end` event."""

    def warn(note: Note) -> None:
        log.emit("note", **asdict(note))

    try:
        session = Session.open(folder)
        with take(session.path, warn, stop.set, take_over=take_over) as lease:
            for note in lease.notes:
                warn(note)
            end = _run(session, log, stop, leave, lease, device)
            _copy_log(log, folder, end, lease)
    except FastDBError as error:
        end = {"outcome": "failed", "message": str(error)}
    return end


def _run(
    session: Session, log: EventLog, stop: threading.Event, leave: threading.Event, lease: Guard, device: str
) -> dict[str, Any]:
    try:
        prepare_libraries()
        # Imported here, so that a signal during the import of torch finds its handler in place.
        from fastdb.training.trainer import Trainer

        return {"outcome": Trainer(session, log.emit, stop, leave, lease, device).run()}
    except FastDBError as error:
        return {"outcome": "failed", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug: the event has its traceback, and the exit code is 1
        if is_out_of_memory(error):
            return {"outcome": "failed", "message": str(out_of_memory(error, "training", MORE_MEMORY))}
        message = f"{type(error).__name__}: {error}"
        return {"outcome": "crashed", "message": message, "traceback": traceback.format_exc()}


def _copy_log(log: EventLog, folder: Path, end: dict[str, Any], lease: Guard) -> None:
    """Copy this run's events into the session's logs."""

    def copy() -> None:
        lease.check()
        (folder / "logs").mkdir(exist_ok=True)
        copied = folder / "logs" / log.path.name
        write_text(copied, log.text() + json.dumps({"event": "end", **end}) + "\n")
        samples = [Path(event["path"]) for event in read_events(copied) if event["event"] == "sample"]
        record_files(folder, [path for path in samples if path.is_file()])

    try:
        in_time(copy)
    except Exception as error:  # noqa: BLE001 - the run has ended, and its outcome is not that of its log
        log.emit("note", **asdict(Note("log not copied", str(log.path), first_line(error))))


if __name__ == "__main__":
    options = sys.argv[3:]
    chosen = options[options.index(DEVICE) + 1] if DEVICE in options else ""
    with forgiving_streams():
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), TAKE_OVER in options, chosen))
