"""The trainer's process and the lock against a second trainer.

Needs no torch: the terminal or notebook that follows a trainer stays light. The lock is on this machine's own disk, and
the operating system releases it when its holder dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastdb.checkpoints.local_work import TRAINING_LOCK
from fastdb.errors import FastDBError, SessionBusy, StorageError, TrainingError
from fastdb.reporting import argument
from fastdb.runtime.isolation import PROCESS_FOLDER, start_module
from fastdb.runtime.paths import cache_folder, work_folder
from fastdb.sessions.events import Event, follow_events, read_events
from fastdb.sessions.identity import claim_work
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder, write_json

TAKE_OVER = "--take-over"
DEVICE = "--device"
_CURRENT = "current.json"
_ANNOUNCED_WITHIN = 10.0
"""Seconds a trainer may take to report its PID, from its start or from taking the lock."""
_RECENT = 20
"""Steps over which the rate is measured."""
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Running:
    """A trainer that runs, or ran, on this machine."""

    pid: int
    events: Path
    alive: Callable[[], bool]
    reap: Callable[[], int | None] = lambda: None

    def follow(self, skip: int = 0) -> Iterator[Event]:
        """Yield the trainer's events until its end, without the first `skip`.

        Raises:
            TrainingError: it died before it could report its end.
        """
        last: Event | None = None
        for number, event in enumerate(follow_events(self.events, self.alive)):
            last = event
            if number >= skip:
                yield event
        code = self.reap()
        if last is None or last["event"] != "end":
            raise TrainingError(
                f"the trainer {self._cause_of_death(code)}",
                where=f"process {self.pid}",
                fix="Run the same command again; it resumes from the last checkpoint.",
            )

    def stop(self) -> None:
        """Ask the trainer to save a checkpoint after the current step and to end."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _cause_of_death(self, code: int | None) -> str:
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"was killed ({name})" + (", probably out of memory" if name == "SIGKILL" else "")
        log = self.events.with_suffix(".out")
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return f"crashed: {lines[-1][:200]}" if lines else "crashed or was killed"


def start(session: Session, take_over: bool = False, device: str = "") -> Running:
    """Start a trainer for a session; it keeps running when the caller ends.

    Args:
        device: `cuda:N` or `cpu`; by default the first free GPU.
        take_over: also take the session over from another machine that trains it.

    Raises:
        StorageError: this machine's work folder cannot be written.
        TrainingError: a package is missing in the trainer's environment.
    """
    with suppress(FastDBError):  # The trainer reports a session that cannot be opened or written.
        session, _ = claim_work(Session.open(session.path))
    folder = work_folder(session.path)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    events = folder / f"run-{stamp}.jsonl"
    make_folder(folder)
    words = [str(session.path), str(events), *([TAKE_OVER] if take_over else []), *([DEVICE, device] if device else [])]
    with explained(folder), open(events.with_suffix(".out"), "w", encoding="utf-8") as output:
        process = start_module(
            "fastdb.training",
            words,
            folder / PROCESS_FOLDER,
            output,
            session.config.environment.passed,
            new_session=True,
        )
    # Referenced here, so that Python does not warn when a caller drops the process while it runs.
    _children.append(process)
    # Before the trainer has reported its PID nobody else could find it, and a second trainer would be started.
    deadline = time.monotonic() + _ANNOUNCED_WITHIN
    while process.poll() is None and _announced(folder).get("pid") != process.pid and time.monotonic() < deadline:
        time.sleep(0.02)
    return Running(process.pid, events, lambda: process.poll() is None, process.wait)


def find(session: Session) -> Running | None:
    """Return the running trainer of a session on this machine, or None.

    Raises:
        TrainingError: another process holds the lock and does not report its PID.
    """
    folder = work_folder(session.path)
    deadline = time.monotonic() + _ANNOUNCED_WITHIN
    while is_training(session.path):
        current = _announced(folder)
        if current and _exists(current["pid"]):
            return Running(current["pid"], Path(current["events"]), lambda: is_training(session.path))
        # The holder of the lock has not reported its PID yet: the file is its predecessor's.
        if time.monotonic() > deadline:
            raise TrainingError(
                "another process holds the training lock but has not reported its PID",
                where=session.name,
                fix="Wait until it ends, or kill it.",
            )
        time.sleep(0.05)
    return None


@dataclass(frozen=True)
class Activity:
    """What the trainer of a session is doing on this machine."""

    pid: int
    stage: str = ""
    """The stage, or the task of the preparation; empty before the first event of either."""
    step: int = 0
    steps: int = 0
    rate: float = 0.0
    """Steps per second; 0 if it is not known yet."""


def activity(session: Session) -> Activity | None:
    """Return what the trainer of a session does on this machine; None if there is none."""
    try:
        running = find(session)
    except (StorageError, TrainingError):
        return None
    if running is None:
        return None
    try:
        events = read_events(running.events)
    except OSError:
        events = []
    last = next((event for event in reversed(events) if event["event"] in ("progress", "stage", "step")), None)
    if last is None:
        return Activity(running.pid)
    if last["event"] == "progress":
        return Activity(running.pid, last["task"], last["done"], last["total"])
    recent = [event for event in events if event["event"] == "step" and event["stage"] == last["stage"]][-_RECENT:]
    seconds = sum(event["seconds"] for event in recent)
    rate = len(recent) / seconds if seconds else 0.0
    return Activity(running.pid, last["stage"], last["step"], last["steps"], rate)


@contextmanager
def interrupts_kept() -> Iterator[list[int]]:
    """Collect interruptions in a list instead of raising them, in the main thread.

    A trainer that has been started is not forgotten by its caller because of Ctrl-C meanwhile.
    """
    kept: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield kept
        return
    before = signal.signal(signal.SIGINT, lambda number, _: kept.append(number))
    try:
        yield kept
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def training_lock(session: Path, events: Path | None = None) -> Iterator[None]:
    """Hold the lock against a second trainer of a session.

    Args:
        events: the event file of a trainer; reported with its PID to `find`.

    Raises:
        SessionBusy: another process on this machine holds it.
    """
    lock, folder = _lock(session), work_folder(session)
    try:
        # `is_training` holds the lock for a moment.
        lock.acquire(timeout=1)
        while (now := work_folder(session)) != folder:  # Restarted meanwhile by the holder of the lock.
            lock.release()
            lock, folder = _lock(session), now
            lock.acquire(timeout=1)
    except Timeout:
        raise SessionBusy(
            "another process is training this session",
            where=session,
            fix=f"Follow it with: fastdb train {argument(session.name)}",
        ) from None
    try:
        if events is not None:
            write_json(folder / _CURRENT, {"pid": os.getpid(), "events": str(events)})
        yield
    finally:
        lock.release()


def is_training(session: Path) -> bool:
    """Return whether a process on this machine trains a session."""
    return _is_held(_lock(session))


def any_training() -> bool:
    """Return whether a process on this machine trains any session."""
    return any(_is_held(FileLock(lock)) for lock in (cache_folder() / "work").glob(f"*/{TRAINING_LOCK}"))


def _lock(session: Path) -> FileLock:
    folder = work_folder(session)
    make_folder(folder)
    return FileLock(folder / TRAINING_LOCK)


def _is_held(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _announced(folder: Path) -> dict[str, Any]:
    """Return the PID and event file that the present or last holder of the lock reported."""
    path = folder / _CURRENT
    current: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return current


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0) if pid > 0 else None
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
