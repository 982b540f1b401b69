"""The publisher's process as the trainer sees it: started when something is to be published, waited for at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastdb.checkpoints.pending import pending, spare_here
from fastdb.checkpoints.publish import Publishing
from fastdb.errors import StorageError
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import Emit, follow_events
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder


@dataclass
class Publisher:
    """Publishes a session's checkpoints while its trainer trains, in a process that gives way to all others.

    That process goes on when the trainer dies, until all is published.
    """

    session: Session
    base: Path
    emit: Emit
    lease: Guard = field(default_factory=Guard)
    _process: subprocess.Popen[bytes] | None = None
    _relay: threading.Thread | None = None
    _published: set[Path] = field(default_factory=set)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def wake(self) -> None:
        """See to it that somebody publishes."""
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        """Start the process; one that runs still is waited for by the lock."""
        folder = work_folder(self.session.path)
        make_folder(folder)
        events = folder / f"publish-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S-%f')}.jsonl"
        with open(events.with_suffix(".out"), "w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # a torch.py or a folder fastdb in the current folder is not to be imported
                    "-m",
                    "fastdb.checkpoints",
                    str(self.session.path),
                    str(self.base),
                    str(events),
                    str(os.getpid()),
                    *self.lease.words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        process = self._process
        self._relay = threading.Thread(target=self._pass_on, args=(process, events), name="publisher", daemon=True)
        self._relay.start()

    def wake_if_pending(self) -> None:
        """See to it that somebody publishes, where something is left from before, as far as the disk tells."""
        with suppress(StorageError):
            if pending(self.session):
                self.wake()

    def finish(self, leaving: Callable[[], bool]) -> None:
        """Publish all that is pending; where `leaving` says so, leave the rest to a process that goes on by itself.

        Raises:
            StorageError: it cannot be done, and on this machine alone lies what is named.
            SessionBusy: another machine has taken the session over.
        """
        if self._process is not None and self._process.poll() is None and not leaving():
            # It ends after the one it is at; the others are published here, where their progress is seen.
            self._process.terminate()
            no_longer_nice(self._process.pid)
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
        except (StorageError, OSError) as error:
            raise StorageError(
                f"{self._names()} could not be published and lies on this machine alone, in "
                f"{self.session.local_checkpoints} ({str(error).splitlines()[0]})",
                where=self.session.name,
                fix="Mount its disk again, or free some of it, and run the same command again on this machine.",
            ) from error
        if leaving():
            self.wake()
        else:
            spare_here(self.session, keep=1)

    def _names(self) -> str:
        with suppress(StorageError):
            return ", ".join(one.path.name for one in pending(self.session)) or "the last checkpoint"
        return "the last checkpoint"

    def _pass_on(self, process: subprocess.Popen[bytes], events: Path) -> None:
        for event in follow_events(events, lambda: process.poll() is None):
            fields = {name: value for name, value in event.items() if name not in ("event", "time")}
            if event["event"] == "end":
                break
            if event["event"] == "published":
                self._published.add(Path(event["path"]))
            self.emit(event["event"], **fields)
        code = process.wait()
        if code not in (0, -signal.SIGTERM):
            self.emit(
                "warning", message=f"the publisher ended with {code}; its words are in {events.with_suffix('.out')}"
            )


def no_longer_nice(process: int) -> None:
    """Let a process take part in the processor's time like any other, where this user may: it is waited for."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)
