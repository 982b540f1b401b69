"""The trainer's handle on the publisher process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastdb.checkpoints.publish import REPEAT_AFTER, Publishing, pending, prune_local
from fastdb.errors import FastDBError, SessionBusy, StorageError, first_line
from fastdb.runtime.isolation import PROCESS_FOLDER, start_module
from fastdb.sessions.events import Emit, follow_events
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder


@dataclass
class Publisher:
    """Publishes a session's checkpoints during training, in a process of low priority.

    If the trainer dies, that process continues until everything is published.
    """

    session: Session
    base: Path
    emit: Emit
    lease: Guard = field(default_factory=Guard)
    _process: subprocess.Popen[bytes] | None = None
    _relay: threading.Thread | None = None
    _published: set[Path] = field(default_factory=set)
    _start_lock: threading.Lock = field(default_factory=threading.Lock)
    _noted: dict[tuple[str, str], float] = field(default_factory=dict)

    def wake(self) -> None:
        """Start the publisher process if it is not running; a failure is reported and does not stop training."""
        with self._start_lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        try:
            self._start_process()
        except (OSError, FastDBError) as error:
            self._note("publishing delayed", reason=first_line(error))

    def _start_process(self) -> None:
        """Start the process; the publishing lock makes it wait for an older process."""
        folder = self.session.work
        make_folder(folder)
        events = folder / f"publish-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S-%f')}.jsonl"
        with open(events.with_suffix(".out"), "w", encoding="utf-8") as output:
            words = [str(self.session.path), str(self.base), str(events), str(os.getpid()), *self.lease.words]
            self._process = start_module(
                "fastdb.checkpoints", words, folder / PROCESS_FOLDER, output, self.session.config.environment.passed
            )
        process = self._process
        self._relay = threading.Thread(target=self._forward, args=(process, events), name="publisher", daemon=True)
        self._relay.start()

    def wake_if_pending(self) -> None:
        """Start the publisher process if an earlier run left checkpoints to publish; ignore a disk that is away."""
        with suppress(OSError, FastDBError):
            if pending(self.session):
                self.wake()

    def finish(self, leaving: Callable[[], bool]) -> None:
        """Publish everything that is pending; once `leaving` returns true, leave the rest to a process of its own.

        Raises:
            StorageError: publishing failed; the checkpoints it names exist on this machine only.
            SessionBusy: another machine has taken over the session.
        """
        if self._process is not None and self._process.poll() is None and not leaving():
            # It ends after its current checkpoint; this process publishes the others and shows their progress.
            self._process.terminate()
            _reset_priority(self._process.pid)
            while self._relay is not None and self._relay.is_alive() and not leaving():
                self._relay.join(0.2)
            if leaving():
                self._start()
        if leaving():
            self.wake()
            return
        try:
            last = Publishing(self.session, self.base, self.emit, self.lease.check, known=self._published)
            last.run(lambda: True, leaving)
        except SessionBusy:
            raise
        except Exception as error:
            names = self._pending_names()
            kept = "it exists" if len(names) == 1 else "they exist"
            reason, fix = first_line(error), "Run the same command on this machine again."
            if isinstance(error, FastDBError):
                reason, fix = error.problem, error.fix
            elif isinstance(error, OSError) and error.filename:
                reason = f"{error.filename}: {error.strerror}"
            if isinstance(error, StorageError | OSError):
                fix = "Mount the session's disk again, or free space on it, and run the same command on this machine."
            raise StorageError(
                f"{', '.join(names)} could not be published, so {kept} on this machine only, in "
                f"{self.session.local_checkpoints}: {reason}",
                where=self.session.name,
                fix=fix,
            ) from error
        if leaving():
            self.wake()
        else:
            prune_local(self.session, keep=1)

    def _pending_names(self) -> list[str]:
        with suppress(OSError, FastDBError):
            return [checkpoint.path.name for checkpoint in pending(self.session)] or ["the last checkpoint"]
        return ["the last checkpoint"]

    def _forward(self, process: subprocess.Popen[bytes], events: Path) -> None:
        try:
            for event in follow_events(events, lambda: process.poll() is None):
                fields = {name: value for name, value in event.items() if name not in ("event", "time")}
                if event["event"] == "end":
                    break
                if event["event"] == "published":
                    self._published.add(Path(event["path"]))
                if event["event"] == "note":
                    self._note(**fields)
                else:
                    self.emit(event["event"], **fields)
        except OSError as error:
            self._note("publishing delayed", reason=first_line(error))
        code = process.wait()
        if code not in (0, -signal.SIGTERM):
            self._note("publisher crashed", str(code), str(events.with_suffix(".out")))

    def _note(self, kind: str, subject: str = "", reason: str = "") -> None:
        """Emit a note, but not again for a while if only its reason differs: each save may start a new process."""
        now = time.monotonic()
        if now - self._noted.get((kind, subject), float("-inf")) >= REPEAT_AFTER:
            self._noted[kind, subject] = now
            self.emit("note", kind=kind, subject=subject, reason=reason)


def _reset_priority(process: int) -> None:
    """Give a process normal CPU priority, if this user may, because the trainer now waits for it."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)
