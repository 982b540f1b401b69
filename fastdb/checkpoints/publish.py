"""Publishing of checkpoints from this machine's disk to the session's folder.

Training saves on this machine's own disk and never waits for Google Drive. A *published* checkpoint is in the session's
folder, in a folder of its own that was read back and hashed, and any machine can resume from it. `pending.py` decides
which are published.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from fastdb.checkpoints.checkpoint import Checkpoint, clear_unfinished, complete
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.claims import claimed
from fastdb.checkpoints.pending import MADE_OF, is_last, raw_hashes
from fastdb.checkpoints.pending import pending as pending
from fastdb.checkpoints.pending import prune_local as prune_local
from fastdb.checkpoints.progress import STAGES
from fastdb.checkpoints.retention import prune, retention
from fastdb.errors import SessionBusy, StorageError, first_line
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.delete import bytes_of
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.storage.manifest import faults
from fastdb.storage.set_aside import move_aside

LOCK = "publishing.lock"
HOLDER = "publishing.pid"
"""File with the PID of the process that held the lock last."""
SETTLES_WITHIN = 1800.0
"""Seconds after which the next checkpoint is written even if Drive has not reported the upload of the one before."""
REPEAT_AFTER = 600.0
"""Seconds until the same note is repeated."""
BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until a failure is retried, the last value for all later retries."""
ANNOUNCED_AFTER = 5.0
"""Seconds of waiting for another publisher until that is reported."""
BUSY_WITHIN = 20.0
"""Seconds for which a command waits while a checkpoint is being published."""


def _is_gone(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint on this machine was moved or deleted meanwhile."""
    try:
        checkpoint.path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


class _Pace:
    """Limits writing to `rate` bytes per second by waiting after each block."""

    def __init__(self, rate: float) -> None:
        self._rate, self._began, self._done = rate, time.monotonic(), 0
        self.progress: Callable[[int], None] = lambda done: None

    def __call__(self, count: int) -> None:
        """Count `count` written bytes, and wait until they are due."""
        self._done += count
        self.progress(self._done)
        ahead = self._done / self._rate - (time.monotonic() - self._began)
        if ahead > 0:
            time.sleep(ahead)


@dataclass
class Publishing:
    """Publishes the pending checkpoints of a session in order; only one process at a time does so.

    Attributes:
        base: the folder of the session's base model, from which published weights are stored as differences.
        check_owner: raises if the session now belongs to another machine.
        patience: seconds of failures only after which the end of a run gives up; None for the session's setting.
        known: the published checkpoints that were read back since this run began.
    """

    session: Session
    base: Path
    emit: Emit
    check_owner: Callable[[], None] = lambda: None
    patience: float | None = None
    known: set[Path] = field(default_factory=set)
    _last: Path | None = None
    _written: float = 0.0
    _reported: dict[str, float] = field(default_factory=dict)
    _failures: Counter[Path] = field(default_factory=Counter)
    _oldest_next: bool = False

    def run(self, ending: Callable[[], bool], leaving: Callable[[], bool] = lambda: False) -> None:
        """Publish until nothing is pending and `ending` returns true, or until `leaving` returns true.

        Before the end, a checkpoint is started only after the upload of the one before, as far as Drive reports it.
        A checkpoint is claimed while it is read. If it is gone before that, the newest takes its place; any other
        failure is reported and retried with growing pauses, after the checkpoints that have not failed. At the end, the
        newest checkpoint of each stage that was published earlier is read again: if it is damaged, it is set aside and
        published again from this machine.

        Raises:
            StorageError: at the end nothing has worked for `patience` seconds.
            SessionBusy: another machine has taken over the session.
            Exception: at the end a checkpoint has failed twice for a reason that waiting does not change.
        """
        with self._turn(leaving):
            failures, since = 0, 0.0
            cleared = False
            while not leaving():
                hurry, chosen = ending(), None
                try:
                    self.check_owner()
                    self.session.check_there()
                    if not cleared:
                        clear_unfinished(self.session.checkpoints)
                        cleared = True
                    due = pending(self.session)
                    if not due and hurry:
                        if not self._set_damaged_aside():
                            return
                        continue
                    if due and (hurry or self._settled()):
                        chosen = self._choose(due)
                        with claimed(chosen.path):
                            self._publish(chosen, hurry)
                        failures = 0
                        continue
                except SessionBusy:
                    raise
                except Exception as error:
                    if chosen is not None and _is_gone(chosen):
                        continue
                    since = since if failures else time.monotonic()
                    if (self._fails_again(chosen, error) or time.monotonic() - since >= self.longest_failure) and hurry:
                        raise
                    self._note_rarely("publishing delayed", reason=first_line(error))
                    self._pause(BACK_OFF[min(failures, len(BACK_OFF) - 1)], ending, leaving, hurry)
                    failures += 1
                    continue
                self._pause(1.0, ending, leaving, hurry)

    @property
    def longest_failure(self) -> float:
        """Seconds of failures only after which the end of a run gives up."""
        return self.session.config.checkpoints.patience_minutes * 60 if self.patience is None else self.patience

    @contextmanager
    def _turn(self, leaving: Callable[[], bool]) -> Iterator[None]:
        """Hold the publishing lock, after a wait that is reported; once `leaving` returns true, hold nothing."""
        lock = _publishing_lock(self.session)
        while not leaving():
            try:
                lock.acquire(timeout=ANNOUNCED_AFTER)
                with suppress(OSError):  # A full disk; it is read only to watch whether publishing advances.
                    (self.session.work / HOLDER).write_text(str(os.getpid()), encoding="ascii")
                break
            except Timeout:
                self._note_rarely("publishing waits", self.session.name)
        try:
            yield
        finally:
            lock.release()

    def _choose(self, due: Sequence[Checkpoint]) -> Checkpoint:
        """Return the pending checkpoint to publish now.

        The last ones of stages come first, because later stages need them; then the newest and, if the retention rules
        keep more than can be published between two saves, by turns the oldest. Those that are kept only because they
        are among the newest follow, and those that failed come after all others.
        """
        needed = pending(self.session, needed=True)
        last = [checkpoint for checkpoint in due if is_last(checkpoint)]
        others = [checkpoint for checkpoint in due if checkpoint in needed and checkpoint not in last]
        rest = [checkpoint for checkpoint in due if checkpoint not in needed]
        order = [*last, *(others if self._oldest_next else reversed(others)), *reversed(rest)]
        return min(order, key=lambda checkpoint: self._failures[checkpoint.path])

    def _fails_again(self, chosen: Checkpoint | None, error: Exception) -> bool:
        """Count a failure; whether it is a repeated one that waiting does not change."""
        if chosen is None:
            return False
        self._failures[chosen.path] += 1
        return self._failures[chosen.path] > 1 and not isinstance(error, StorageError | OSError)

    def _publish(self, local: Checkpoint, hurry: bool) -> None:
        """Publish a checkpoint that is claimed."""
        began = time.monotonic()
        if reasons := faults(local.path):
            move_aside(local.path.parent, [local.path])
            self._note("checkpoint skipped", f"{local.path.name} on this machine", reasons[0])
            return
        from fastdb.checkpoints.compressed_checkpoint import compress  # numpy, which listing does not need

        total = bytes_of(local.path)
        pace = _Pace(self.session.config.checkpoints.publish_mb_per_second * 1e6)
        if hurry:
            task = f"publish {local.path.name}"
            pace.progress = lambda done: self.emit("progress", task=task, done=done, total=total, unit="B")

        def write(hidden: Path) -> dict[str, str]:
            return compress(local, hidden, self.base, threads=2 if hurry else 1, pace=pace)

        self.check_owner()
        state = {**local.state, MADE_OF: raw_hashes(local)}
        published, notes = save_checkpoint(self.session.checkpoints, local.stage, local.step, state, write)
        pace.progress(total)
        keep, lineage = retention(self.session), self.session.record.lineages
        for note in (*notes, *prune(self.session.checkpoints, local.stage, keep, lineage)):
            # The next publication reports a disk that is still away; the next pruning deletes the older ones.
            if note.kind != "older checkpoints unread":
                self._note(note.kind, note.subject, note.reason)
        self._last, self._written, self._oldest_next = published.path, time.monotonic(), not self._oldest_next
        self.known.add(published.path)
        facts = {"bytes": bytes_of(published.path), "seconds": round(time.monotonic() - began, 3)}
        self.emit("published", stage=local.stage, step=local.step, path=str(published.path), **facts)

    def _set_damaged_aside(self) -> bool:
        """Set the newest checkpoint of each stage aside if it is damaged; whether there was one."""
        damaged = False
        for stage in STAGES:
            checkpoints = complete(self.session.checkpoints, stage, lineage=self.session.record.lineages)
            if not checkpoints or checkpoints[-1].path in self.known:
                continue
            path = checkpoints[-1].path
            reasons = faults(path)
            if reasons and (aside := move_aside(path.parent, [path])):
                self._note("checkpoint set aside", f"{aside.name}/{path.name}", reasons[0])
                damaged = True
            else:
                self.known.add(path)
        return damaged

    def _settled(self) -> bool:
        """Whether Drive reports the last checkpoint as uploaded, or has had enough time."""
        if self._last is None:
            return True
        with suppress(OSError):
            if not waits_for_upload(self._last):
                return True
        waited = time.monotonic() - self._written
        if waited > REPEAT_AFTER:
            self._note_rarely("upload slow", self._last.name, f"{waited / 60:.0f} minutes")
        return waited > SETTLES_WITHIN

    def _note(self, kind: str, subject: str = "", reason: str = "") -> None:
        self.emit("note", kind=kind, subject=subject, reason=reason)

    def _note_rarely(self, kind: str, subject: str = "", reason: str = "") -> None:
        if time.monotonic() - self._reported.get(kind, -REPEAT_AFTER) >= REPEAT_AFTER:
            self._reported[kind] = time.monotonic()
            self._note(kind, subject, reason)

    @staticmethod
    def _pause(seconds: float, ending: Callable[[], bool], leaving: Callable[[], bool], hurried: bool) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not leaving() and ending() == hurried:
            time.sleep(min(0.2, seconds))


@contextmanager
def nothing_published(session: Session) -> Iterator[None]:
    """Keep processes of this machine from publishing the session's checkpoints.

    Raises:
        SessionBusy: a checkpoint is being published.
    """
    lock = _publishing_lock(session)
    try:
        lock.acquire(timeout=BUSY_WITHIN)
    except Timeout:
        raise SessionBusy(
            "one of its checkpoints is being published", where=session.name, fix="Run the same command in a minute."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _publishing_lock(session: Session) -> FileLock:
    """Return the lock for publishing from this machine; the system releases it when its holder dies."""
    folder = session.work
    make_folder(folder)
    with explained(folder):
        return FileLock(folder / LOCK)
