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
from fastdb.checkpoints.publishing_watch import Stalled, await_publishing, pending_names, publish_rest, report_wait
from fastdb.errors import FastDBError, SessionBusy, StorageError, first_line
from fastdb.reporting import argument
from fastdb.runtime.isolation import PROCESS_FOLDER, start_module
from fastdb.sessions.events import Emit, follow_events
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import CHECKPOINTS, Session
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
    _work: Path = field(init=False)
    """The session's work folder, whose lookup reads the session's disk, which may hang later."""
    _process: subprocess.Popen[bytes] | None = None
    _relay: threading.Thread | None = None
    _published: set[Path] = field(default_factory=set)
    _start_lock: threading.Lock = field(default_factory=threading.Lock)
    _noted: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._work = self.session.work

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
        folder = self._work
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
            StorageError: publishing failed or does not advance; the checkpoints it names exist on this machine only.
            SessionBusy: another machine has taken over the session.
        """
        try:
            ended = self._let_process_end(leaving) and publish_rest(
                Publishing(self.session, self.base, self.emit, self.lease.check, known=self._published),
                self._work,
                lambda: prune_local(self.session, keep=1),
                leaving,
            )
        except SessionBusy:
            raise
        except Exception as error:
            raise self._not_published(error) from error
        if not ended:
            self.wake()

    def _let_process_end(self, leaving: Callable[[], bool]) -> bool:
        """Wait until the publisher process has published its current checkpoint; return whether it ended.

        Raises:
            Stalled: it does not advance; it was killed, so that another process can publish.
        """
        process, relay = self._process, self._relay
        if process is None or relay is None or process.poll() is not None or leaving():
            return not leaving()
        # This process publishes the others and shows their progress.
        process.terminate()
        _reset_priority(process.pid)
        try:
            ended = await_publishing(
                lambda: not relay.is_alive(),
                leaving,
                lambda: {process.pid},
                lambda idle: report_wait(self.session, self._work, self.emit, idle),
            )
        except Stalled:
            process.kill()
            raise
        if not ended:
            self._start()
        return ended

    def _not_published(self, error: Exception) -> StorageError:
        """Return the error for checkpoints that exist on this machine only."""
        names = pending_names(self.session, self._work)
        kept = "it exists" if len(names) == 1 else "they exist"
        command = f"fastdb publish {argument(self.session.name)}"
        reason, fix = first_line(error), f"Publish later on this machine with: {command}"
        if isinstance(error, FastDBError):
            reason, fix = error.problem, f"{error.fix.rstrip('.')}. Then run: {command}" if error.fix else fix
        elif isinstance(error, OSError) and error.filename:
            reason = f"{error.filename}: {error.strerror}"
        if isinstance(error, StorageError | OSError):
            fix = f"Mount the session's disk again, or free space on it, and run on this machine: {command}"
        return StorageError(
            f"{', '.join(names)} could not be published, so {kept} on this machine only, in "
            f"{self._work / CHECKPOINTS}: {reason}",
            where=self.session.name,
            fix=fix,
        )

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
