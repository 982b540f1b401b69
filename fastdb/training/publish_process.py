"""The publisher's process: `python -m fastdb.training.publish_process SESSION BASE_FOLDER EVENTS_FILE TRAINER`.

Ends when all is published after SIGTERM, or after the trainer with the process number TRAINER is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from fastdb.errors import FastDBError
from fastdb.runtime.quiet import hush_libraries
from fastdb.sessions.session import Session
from fastdb.training.events import EventLog

LEAST_NICE = 19
"""The priority of what must never take time from training."""


def main(folder: Path, base: Path, events: Path, trainer: int) -> int:
    """Publish the session in `folder`; returns the exit code."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(LEAST_NICE)
    log = EventLog(events)
    try:
        session = Session.open(folder)
        hush_libraries()
        # Not at the top: a signal that comes while torch is loading must find its handler in place.
        from fastdb.training.publishing import Publishing

        Publishing(session, base, log.tell).run(lambda: ending.is_set() or os.getppid() != trainer)
    except FastDBError as error:
        # Where the trainer still runs, it tries once more at its end and says then what is wrong.
        log.tell("warning", message=f"publishing ended: {error}")
    log.tell("end", outcome="finished")
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
