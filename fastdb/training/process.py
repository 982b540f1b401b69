"""Start the trainer as a process of its own, find one that runs already, follow what it says, stop it.

Needs no torch: the terminal or the notebook that follows stays light.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdb.errors import TrainingError
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import Event, follow_events
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder, write_json
from fastdb.training.lock import is_training

TAKE_OVER = "--take-over"
_CURRENT = "current.json"
_ANNOUNCED_WITHIN = 10.0
"""Seconds a trainer may take from its start, or from taking the lock, to saying who it is."""
_ENVIRONMENT = {
    # What torch needs to multiply the same way twice on CUDA.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Threads that spin while they wait cost a small model ten times its time once a core is shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Running:
    """A trainer that runs, or ran, on this machine."""

    pid: int
    events: Path
    alive: Callable[[], bool]
    reap: Callable[[], int | None] = lambda: None

    def follow(self, skip: int = 0) -> Iterator[Event]:
        """What it says, from its first word to its last, less the first `skip` events.

        Raises:
            TrainingError: it ended without a word: killed by the system, or the machine ran out of memory.
        """
        last: Event | None = None
        for number, event in enumerate(follow_events(self.events, self.alive)):
            last = event
            if number >= skip:
                yield event
        code = self.reap()
        if last is None or last["event"] != "end":
            raise TrainingError(
                f"the trainer {self._death(code)}",
                where=f"process {self.pid}",
                fix="Run the same command again: it goes on from the last checkpoint.",
            )

    def stop(self) -> None:
        """Ask it to save a checkpoint after the step it is in, and to end."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _death(self, code: int | None) -> str:
        """How it ended without a word, as far as can be known."""
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        log = self.events.with_suffix(".out")
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return f"ended without a word ({lines[-1][:200]})" if lines else "ended without a word"


def start(session: Session, take_over: bool = False) -> Running:
    """Start a trainer for a session; it goes on when the caller ends. `take_over` says to take the session also from
    another machine that trains it.

    Raises:
        StorageError: this machine's work folder cannot be written.
    """
    folder = work_folder(session.path)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    events = folder / f"run-{stamp}.jsonl"
    make_folder(folder)
    with explained(folder), open(events.with_suffix(".out"), "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # a torch.py or a folder fastdb in the current folder is not to be imported
                "-m",
                "fastdb.training",
                str(session.path),
                str(events),
                *([TAKE_OVER] if take_over else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**_ENVIRONMENT, **os.environ},
        )
    # Kept, so that a caller who does not follow it may forget it while it runs.
    _children.append(process)
    # Until it has said that it trains, or has ended, nobody else could find it and a second one would be started.
    deadline = time.monotonic() + _ANNOUNCED_WITHIN
    while process.poll() is None and _announced(folder).get("pid") != process.pid and time.monotonic() < deadline:
        time.sleep(0.02)
    return Running(process.pid, events, lambda: process.poll() is None, process.wait)


def announce(session: Path, events: Path) -> None:
    """Tell others on this machine which process trains a session; only the one that holds its lock may say so."""
    write_json(work_folder(session) / _CURRENT, {"pid": os.getpid(), "events": str(events)})


def find(session: Session) -> Running | None:
    """The trainer that runs for a session on this machine, if there is one."""
    folder = work_folder(session.path)
    deadline = time.monotonic() + _ANNOUNCED_WITHIN
    while is_training(session.path):
        told = _announced(folder)
        if told and _exists(told["pid"]):
            return Running(told["pid"], Path(told["events"]), lambda: is_training(session.path))
        # It holds the lock and has not said yet who it is: what lies there is of the one before it.
        if time.monotonic() > deadline:
            raise TrainingError(
                "a process trains it and does not say which it is",
                where=session.name,
                fix="Wait until it has ended, or end it by hand.",
            )
        time.sleep(0.05)
    return None


def _announced(folder: Path) -> dict[str, Any]:
    """What the trainer that holds the lock, or held it last, has said of itself."""
    current = folder / _CURRENT
    told: dict[str, Any] = json.loads(current.read_text(encoding="utf-8")) if current.exists() else {}
    return told


def _exists(pid: int) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(pid, 0) if pid > 0 else None
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
