"""From this machine's disk into the session's folder: one checkpoint after the other, and what if that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from fastdb.checkpoints.checkpoint import NOT_LOOKED_THROUGH, Checkpoint, clear_unfinished, own, prune, set_aside
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.pending import MADE_OF, pending, raw_hashes
from fastdb.checkpoints.progress import STAGES
from fastdb.checkpoints.rate_limit import Pace
from fastdb.checkpoints.retention import retention
from fastdb.errors import SessionBusy, StorageError
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.delete import bytes_of
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.storage.manifest import faults

NOT_YET = "not in the session's folder yet"
"""How the line begins by which a person learns that publishing fails."""
LOCK = "publishing.lock"
SETTLES_WITHIN = 1800.0
"""Seconds after which the next checkpoint is written though Drive has not said that it took the one before."""
TELL_EVERY = 600.0
"""Seconds between two lines that say the same."""
BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until what failed is tried again, the last for all later times."""

BUSY_WITHIN = 20.0
"""Seconds that a verb waits for a checkpoint which is just being published."""


@dataclass
class Publishing:
    """Publishes what is pending, one after the other; one process at a time does so for a session.

    Attributes:
        base: the folder of the session's base model, to which what is published is a difference.
        may: raises where the session belongs to another machine by now.
        patience: seconds of nothing but failures that the end of a run bears; None takes the session's setting.
        known: the published checkpoints that were read back since this run began.
    """

    session: Session
    base: Path
    emit: Emit
    may: Callable[[], None] = lambda: None
    patience: float | None = None
    known: set[Path] = field(default_factory=set)
    _last: Path | None = None
    _written: float = 0.0
    _told: dict[str, float] = field(default_factory=dict)

    def run(self, ending: Callable[[], bool], leaving: Callable[[], bool] = lambda: False) -> None:
        """Publish until `ending` says that no more will come and nothing is pending, or `leaving` that it must stop.

        Before the end a checkpoint is begun only when the one before is uploaded, as far as Drive tells. What fails is
        told and tried again, with growing pauses. At the end the newest of each stage is read once more if it was
        published earlier: what rotted meanwhile is set aside, and published again from this machine where it still is.

        Raises:
            StorageError: at the end nothing has worked for so long as `patience` says.
            SessionBusy: another machine has taken the session over.
        """
        setting = self.session.config.checkpoints.patience_minutes * 60
        patience = setting if self.patience is None else self.patience
        with publishing_lock(self.session.path):
            failures, since = 0, 0.0
            cleared = False
            while not leaving():
                hurry = ending()
                try:
                    self.may()
                    self.session.check_there()
                    if not cleared:
                        clear_unfinished(self.session.checkpoints)
                        cleared = True
                    due = pending(self.session)
                    if not due and hurry:
                        if not self._rotten():
                            return
                        continue
                    if due and (hurry or self._settled()):
                        self._publish(due[0], hurry)
                        failures = 0
                        continue
                except (StorageError, OSError) as error:
                    since = since if failures else time.monotonic()
                    if hurry and time.monotonic() - since >= patience:
                        raise
                    self._once(NOT_YET, f"{NOT_YET}: {str(error).splitlines()[0]}")
                    self._pause(BACK_OFF[min(failures, len(BACK_OFF) - 1)], ending, leaving, hurry)
                    failures += 1
                    continue
                self._pause(1.0, ending, leaving, hurry)

    def _publish(self, one: Checkpoint, hurry: bool) -> None:
        began = time.monotonic()
        if wrong := faults(one.path):
            set_aside(one.path, wrong[0])
            self.emit("warning", message=f"checkpoint {one.path.name} on this machine is passed over: {wrong[0]}")
            return
        from fastdb.checkpoints.compressed_checkpoint import fill  # needs numpy, which whoever only asks does not

        total = bytes_of(one.path)
        pace = Pace(self.session.config.checkpoints.publish_mb_per_second * 1e6)
        if hurry:
            pace.progress = lambda done: self.emit("progress", task=f"publish {one.path.name}", done=done, total=total)

        def write(hidden: Path) -> dict[str, str]:
            return fill(one, hidden, self.base, threads=2 if hurry else 1, pace=pace)

        self.may()
        state = {**one.state, MADE_OF: raw_hashes(one)}
        done, said = save_checkpoint(self.session.checkpoints, one.stage, one.step, state, write)
        pace.progress(total)
        keep, lineage = retention(self.session), self.session.record.lineage
        said += prune(self.session.checkpoints, one.stage, keep, lineage)
        for line in said:
            # That the disk went away meanwhile is told when it is wanted next, and older ones go the next time.
            if not line.startswith(NOT_LOOKED_THROUGH):
                self.emit("warning", message=line)
        self._last, self._written = done.path, time.monotonic()
        self.known.add(done.path)
        told = {"bytes": bytes_of(done.path), "seconds": round(time.monotonic() - began, 3)}
        self.emit("published", stage=one.stage, step=one.step, path=str(done.path), **told)

    def _rotten(self) -> bool:
        """Set aside the newest of each stage where it is no longer what was published; whether there was one."""
        found = False
        for stage in STAGES:
            there = own(self.session.checkpoints, stage, self.session.record.lineage)
            if not there or there[-1].path in self.known:
                continue
            if wrong := faults(there[-1].path):
                self.emit("warning", message=set_aside(there[-1].path, wrong[0]))
                found = True
            else:
                self.known.add(there[-1].path)
        return found

    def _settled(self) -> bool:
        """Whether Drive has taken the one before, as far as it tells; or has had long enough."""
        if self._last is None:
            return True
        with suppress(OSError):
            if not waits_for_upload(self._last):
                return True
        waited = time.monotonic() - self._written
        if waited > TELL_EVERY:
            self._once(
                "uploads", f"Google Drive has not uploaded {self._last.name}, written {waited / 60:.0f} minutes ago"
            )
        return waited > SETTLES_WITHIN

    def _once(self, kind: str, line: str) -> None:
        if time.monotonic() - self._told.get(kind, -TELL_EVERY) >= TELL_EVERY:
            self._told[kind] = time.monotonic()
            self.emit("warning", message=line)

    @staticmethod
    def _pause(seconds: float, ending: Callable[[], bool], leaving: Callable[[], bool], hurried: bool) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not leaving() and ending() == hurried:
            time.sleep(min(0.2, seconds))


@contextmanager
def nothing_published(session: Session) -> Iterator[None]:
    """Within this nobody on this machine publishes the session's checkpoints.

    Raises:
        SessionBusy: one is just being published.
    """
    lock = publishing_lock(session.path)
    try:
        lock.acquire(timeout=BUSY_WITHIN)
    except Timeout:
        raise SessionBusy(
            "a checkpoint of it is just being published", where=session.name, fix="Run the same command in a minute."
        ) from None
    try:
        yield
    finally:
        lock.release()


def publishing_lock(session: Path) -> FileLock:
    """The right to publish a session's checkpoints from this machine; the system lets it go when its holder dies."""
    folder = work_folder(session)
    make_folder(folder)
    with explained(folder):
        return FileLock(folder / LOCK)
