"""From this machine's disk into the session's folder: which checkpoints, when, how fast, and what if that fails.

Training saves on this machine's own disk and never waits for Google Drive. What is *published* lies in the session's
folder, in a folder of its own that was read back and hashed. Published is what any machine may go on from: the newest,
the last of each stage, and those that are kept for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from fastdb.errors import CheckpointError, StorageError
from fastdb.runtime.places import work_folder
from fastdb.sessions import checkpoints
from fastdb.sessions.checkpoints import KEEP, STATE, Checkpoint, complete
from fastdb.sessions.session import Session
from fastdb.sessions.trained import STAGES
from fastdb.storage.durable import explained, make_folder
from fastdb.storage.manifest import faults, hashes_in
from fastdb.storage.removal import bytes_of
from fastdb.storage.uploads import waits_for_upload
from fastdb.training.events import Tell
from fastdb.training.pace import Pace

NOT_YET = "not in the session's folder yet"
"""How the line begins by which a person learns that publishing fails."""
LOCK = "publishing.lock"
MADE_OF = "made_of"
"""Where a published checkpoint's state keeps the SHA-256 of each file of the local one it was made of."""
SETTLES_WITHIN = 1800.0
"""Seconds after which the next checkpoint is written though Drive has not said that it took the one before."""
TELL_EVERY = 600.0
"""Seconds between two lines that say the same."""
BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until what failed is tried again, the last for all later times."""


def pending(session: Session) -> list[Checkpoint]:
    """The checkpoints on this machine that have yet to be published, in the order in which they must be.

    Of those of one stage that are neither its last nor to be kept only the newest counts, and none once a later one is
    published.

    Raises:
        StorageError: a disk does not answer.
    """
    lineage = session.record.lineage
    there = _in_order([one for one in complete(session.local_checkpoints) if not one.stranger(lineage)])
    if not there:
        return []
    out = [one for one in complete(session.checkpoints) if not one.stranger(lineage)]
    by_name = {one.path.name: one for one in out}
    missing = [one for one in there if one.path.name not in by_name or not is_same(one, by_name[one.path.name])]
    newest = there[-1]
    return [one for one in missing if _stays(session, one) or (one == newest and not _is_behind(one, out))]


def _in_order(found: list[Checkpoint]) -> list[Checkpoint]:
    return sorted(found, key=_place)


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return (STAGES.index(checkpoint.stage) if checkpoint.stage in STAGES else -1, checkpoint.step)


def _is_behind(one: Checkpoint, out: list[Checkpoint]) -> bool:
    return any(_place(other) > _place(one) for other in out)


def is_same(local: Checkpoint, published: Checkpoint) -> bool:
    """Whether `published` says that it was made of `local`; no tensor is read."""
    try:
        return bool(published.state.get(MADE_OF) == _raw(local))
    except (CheckpointError, StorageError):
        return False


def _raw(local: Checkpoint) -> dict[str, str]:
    return {name: digest for name, digest in hashes_in(local.path).items() if name != STATE}


def _stays(session: Session, checkpoint: Checkpoint) -> bool:
    """Whether it is the last of its stage, or one to be kept for good."""
    every = session.config.checkpoints.keep_every
    if every and checkpoint.step % every == 0:
        return True
    try:
        return checkpoint.step == checkpoint.state["steps"]
    except (CheckpointError, KeyError):
        return False


def spare_here(session: Session, keep: int = KEEP) -> list[str]:
    """Remove the checkpoints on this machine that have `keep` newer ones of their stage and need not be published.

    Returns a line for each that could not be removed, or one why they were not looked through.
    """
    try:
        waiting = {one.path for one in pending(session)}
        going = [one for one in complete(session.local_checkpoints) if one.stranger(session.record.lineage)]
        for stage in STAGES:
            there = checkpoints.own(session.local_checkpoints, stage, session.record.lineage)
            going += [one for one in there[:-keep] if one.path not in waiting]
    except StorageError:
        # The session's disk is away: nothing tells what is published, so all stays until the next time.
        return []
    said = []
    for one in going:
        try:
            checkpoints.take_away(one)
        except OSError as error:
            said.append(f"checkpoint {one.path.name} on this machine could not be removed: {error.strerror}")
    return said


@dataclass
class Publishing:
    """Publishes what is pending, one after the other; one process at a time does so for a session.

    Attributes:
        base: the folder of the session's base model, to which what is published is a difference.
        may: raises where the session belongs to another machine by now.
        patience: seconds of nothing but failures that the end of a run bears; None takes the session's setting.
    """

    session: Session
    base: Path
    tell: Tell
    may: Callable[[], None] = lambda: None
    patience: float | None = None
    _last: Path | None = None
    _written: float = 0.0
    _told: dict[str, float] = field(default_factory=dict)

    def run(self, ending: Callable[[], bool], leaving: Callable[[], bool] = lambda: False) -> None:
        """Publish until `ending` says that no more will come and nothing is pending, or `leaving` that it must stop.

        Before the end a checkpoint is begun only when the one before is uploaded, as far as Drive tells. What fails is
        told and tried again, with growing pauses.

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
                    self.session.check_there()
                    if not cleared:
                        checkpoints.clear_unfinished(self.session.checkpoints)
                        cleared = True
                    due = pending(self.session)
                    if not due and hurry:
                        return
                    if due and (hurry or self._settled()):
                        self._publish(due[0], hurry)
                        failures = 0
                        continue
                except (StorageError, OSError) as error:
                    since = since if failures else time.monotonic()
                    if hurry and time.monotonic() - since >= patience:
                        raise
                    self._once(f"{NOT_YET}: {str(error).splitlines()[0]}")
                    self._pause(BACK_OFF[min(failures, len(BACK_OFF) - 1)], ending, leaving, hurry)
                    failures += 1
                    continue
                self._pause(1.0, ending, leaving, hurry)

    def _publish(self, one: Checkpoint, hurry: bool) -> None:
        self.may()
        began = time.monotonic()
        if wrong := faults(one.path):
            checkpoints.set_aside(one.path, wrong[0])
            self.tell("warning", message=f"checkpoint {one.path.name} on this machine is passed over: {wrong[0]}")
            return
        from fastdb.models.packed_checkpoint import fill  # needs torch, which whoever only asks does not

        total = bytes_of(one.path)
        pace = Pace(self.session.config.checkpoints.publish_mb_per_second * 1e6)
        if hurry:
            pace.progress = lambda done: self.tell("progress", task=f"publish {one.path.name}", done=done, total=total)

        def write(hidden: Path) -> dict[str, str]:
            return fill(one, hidden, self.base, threads=2 if hurry else 1, pace=pace)

        state = {**one.state, MADE_OF: _raw(one)}
        done, said = checkpoints.save(self.session.checkpoints, one.stage, one.step, state, write)
        pace.progress(total)
        every, lineage = self.session.config.checkpoints.keep_every, self.session.record.lineage
        said += checkpoints.prune(self.session.checkpoints, one.stage, every, lineage)
        for line in said:
            self.tell("warning", message=line)
        self._last, self._written = done.path, time.monotonic()
        told = {"bytes": bytes_of(done.path), "seconds": round(time.monotonic() - began, 3)}
        self.tell("published", stage=one.stage, step=one.step, path=str(done.path), **told)

    def _settled(self) -> bool:
        """Whether Drive has taken the one before, as far as it tells; or has had long enough."""
        if self._last is None:
            return True
        with suppress(OSError):
            if not waits_for_upload(self._last):
                return True
        waited = time.monotonic() - self._written
        if waited > TELL_EVERY:
            self._once(f"Google Drive has not uploaded {self._last.name}, written {waited / 60:.0f} minutes ago")
        return waited > SETTLES_WITHIN

    def _once(self, line: str) -> None:
        kind = line[:40]
        if time.monotonic() - self._told.get(kind, -TELL_EVERY) >= TELL_EVERY:
            self._told[kind] = time.monotonic()
            self.tell("warning", message=line)

    @staticmethod
    def _pause(seconds: float, ending: Callable[[], bool], leaving: Callable[[], bool], hurried: bool) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not leaving() and ending() == hurried:
            time.sleep(min(0.2, seconds))


def publishing_lock(session: Path) -> FileLock:
    """The right to publish a session's checkpoints from this machine; the system lets it go when its holder dies."""
    folder = work_folder(session)
    make_folder(folder)
    with explained(folder):
        return FileLock(folder / LOCK)
