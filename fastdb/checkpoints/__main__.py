"""The publisher's process: `python -m fastdb.checkpoints SESSION BASE_FOLDER EVENTS_FILE TRAINER [LEASE]`.

SIGTERM asks it to end after the checkpoint it is at. Where the trainer, of the process number TRAINER, is gone, it ends
when all is published.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdb.checkpoints.publish import NOT_YET, Publishing
from fastdb.errors import FastDBError, StorageError
from fastdb.runtime.library_logging import hush_libraries
from fastdb.sessions.events import EventLog
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session

NICE = 12
"""Where training wants every core, the kernel gives this a fifteenth of one (weight 70 to 1024): little enough
for training, and enough to be done within minutes."""


def main(folder: Path, base: Path, events: Path, trainer: int, lease: Sequence[str]) -> int:
    """Publish the session in `folder`; returns the exit code."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    log = EventLog(events)

    def orphaned() -> bool:
        return os.getppid() != trainer

    try:
        session = _opened(folder, log, lambda: ending.is_set() or orphaned())
        hush_libraries()
        Publishing(session, base, log.emit, Guard(folder, lease).check).run(orphaned, ending.is_set)
    except FastDBError as error:
        # Where the trainer still runs, it tries once more at its end and says then what is wrong.
        log.emit("warning", message=f"publishing ended: {error}")
    log.emit("end", outcome="finished")
    log.close()
    return 0


def _opened(folder: Path, log: EventLog, done: Callable[[], bool]) -> Session:
    """The session, as soon as its disk is there.

    Raises:
        FastDBError: it cannot be opened, or its disk is away and nobody trains any more.
    """
    told = False
    while True:
        try:
            return Session.open(folder)
        except StorageError as error:
            if done():
                raise
            if not told:
                log.emit("warning", message=f"{NOT_YET}: {str(error).splitlines()[0]}")
            told = True
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
