"""The publisher process.

Usage: `python -m fastdb.checkpoints SESSION BASE_FOLDER EVENTS_FILE TRAINER [LEASE]`

After SIGTERM it ends when the current checkpoint is published; after the end of the trainer, whose PID is TRAINER, when
all checkpoints are published.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdb.checkpoints.publish import Publishing
from fastdb.console.streams import forgiving_streams
from fastdb.errors import FastDBError, first_line
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.sessions.events import EventLog
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session

NICE = 12
"""If training uses every core, the kernel gives this process a fifteenth of one (weight 70 to 1024): little enough for
training, and enough to finish within minutes."""


def main(folder: Path, base: Path, events: Path, trainer: int, lease: Sequence[str]) -> int:
    """Publish the session in `folder` and return the exit code."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    log = EventLog(events)

    def orphaned() -> bool:
        return os.getppid() != trainer

    try:
        session = _open(folder, log, lambda: ending.is_set() or orphaned())
        prepare_libraries()
        Publishing(session, base, log.emit, Guard(folder, lease).check).run(orphaned, ending.is_set)
    except Exception as error:  # noqa: BLE001 - the trainer starts the next process, and reports the error at its end
        reason = str(error) if isinstance(error, FastDBError) else first_line(error)
        log.emit("note", kind="publishing ended", subject="", reason=reason)
    log.emit("end", outcome="finished")
    log.close()
    return 0


def _open(folder: Path, log: EventLog, done: Callable[[], bool]) -> Session:
    """Open the session as soon as its disk is available.

    Raises:
        FastDBError: it cannot be opened, and the trainer has ended.
    """
    reported = False
    while True:
        try:
            return Session.open(folder)
        except (OSError, FastDBError) as error:
            # Its disk is away, or a person is editing its record.
            if done():
                raise
            if not reported:
                log.emit("note", kind="publishing delayed", subject="", reason=first_line(error))
            reported = True
            time.sleep(1)


if __name__ == "__main__":
    with forgiving_streams():
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
