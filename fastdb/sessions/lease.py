"""Leases, by which only one machine at a time trains a session.

Between the processes of a machine a lock decides (`training/process.py`), and a lease is taken under it. Machines share
no lock, only a file that the others see sooner or later.

Guaranteed, with any clocks and wherever a machine dies:
- Of two owners every machine gives way to the same one: leases have a rank, and a lease that takes over ranks above the
  one it replaces. A process that sees a higher rank writes nothing more into the session, and stops.
- No lease blocks for good: `take_over` takes any lease, and a lease that does not change for `QUIET` seconds by the
  observer's monotonic clock counts as abandoned.
- A lease that is seen to change is not taken over without a request, however wrong the clocks are.

Not guaranteed:
- The file has to arrive. On a shared disk it is there at once, and two processes that take a free session both keep it
  only if one of them is suspended for longer than `SETTLE` between its read and its write, which are a millisecond
  apart, and then until it writes or renews its lease. On Google Drive the file takes seconds to minutes to reach the
  other machine, and for that time both may train and write; checkpoints have names and checksums of their own.
- A lease that is seen for the first time is judged by its owner's clock, unless that is over a minute ahead or 60 days
  behind. With clocks that differ by 7 minutes to 60 days a live trainer can be taken over without a request: it saves
  on its own disk and stops, and the two never both continue to write.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from fastdb.errors import SessionBusy, StorageError, first_line
from fastdb.reporting import Note, argument
from fastdb.runtime import machine
from fastdb.runtime.paths import cache_folder, lineage_of, work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.lease_file import ASIDE, FILE, Lease
from fastdb.sessions.lease_status import QUIET, Verdict, busy, judge, minutes, when
from fastdb.sessions.lineage import check_same
from fastdb.storage.atomic_write import explained
from fastdb.storage.set_aside import next_aside

BEAT = 120.0
"""Seconds between renewals; three may fail within `QUIET`."""
SETTLE = 1.0
"""Seconds after which a new lease is read back: a thousand times the time between its read and its write. Training does
not wait for it, because the trainer loads torch meanwhile."""
ENDING = 10.0
"""Seconds that the release of a lease may take. On a disk that does not answer the lease stays and expires."""

_HALF = 0.2
"""Seconds after which an invalid file is read again, because another process may be writing it."""
_TRIES = 3
"""Attempts to write a lease if the one it replaced is renewed at the same moment."""
_UNREADABLE = 1000
"""Term after an invalid lease, to rank above its owner, who may be alive. Terms grow by one for each trainer that died
and start at 1 again after a trainer that ended."""

Warn = Callable[[Note], None]


class Guard:
    """Permission to write to a session, which a lease of higher rank withdraws.

    `words` identify the lease for another process, such as a publisher, as arguments of its command line. Without them
    writing is always permitted: no other machine reaches the session.
    """

    def __init__(self, session: Path = Path(), words: Sequence[str] = ()) -> None:
        self.session, self.words = session, tuple(words)
        self.notes: tuple[Note, ...] = ()
        """What was taken over."""
        # As in `Lease.rank`.
        self._rank = (int(words[0]), -int(words[1], 16)) if words else None

    def check(self) -> None:
        """Raise if the session was taken over; costs one small read.

        A disk that does not answer permits: the write that follows meets the same error.

        Raises:
            SessionBusy: naming the new owner.
        """
        if self._rank is None:
            return
        try:
            current = lease_file.read(self.session / FILE)
        except OSError:
            return
        if isinstance(current, Lease) and current.rank > self._rank:
            raise _taken_over(self.session, current)

    def holds(self) -> bool:
        """Return whether the session may be written to."""
        try:
            self.check()
        except SessionBusy:
            return False
        return True


class Held(Guard):
    """Lease of this process, renewed in a thread until the end of the `with` block.

    Args:
        warn: called with a note, once and in any thread, if the lease cannot be renewed.
        lost: called in any thread when the session was taken over.
    """

    def __init__(
        self, session: Path, lease: Lease, notes: Sequence[Note], may_live: bool, warn: Warn, lost: Callable[[], None]
    ) -> None:
        super().__init__(session, (str(lease.term), lease.token))
        self.lease, self.notes = lease, tuple(notes)
        self._may_live, self._warn, self._lost, self._warned = may_live, warn, lost, False
        self._taken = self._renewed = machine.ticking()
        self._lineage = lineage_of(session)
        self._refusal: SessionBusy | None = None
        self._end, self._settled, self._turn = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def check(self) -> None:
        """Raise if the session was taken over or replaced; the first call waits until the lease has settled.

        Raises:
            SessionBusy: naming the new owner, or the place of the checkpoints.
        """
        self._settled.wait(ENDING)
        if self._refusal is None:
            try:
                check_same(self.session, self._lineage)
                super().check()
                if machine.ticking() - self._renewed > QUIET:
                    # The process slept or had no disk, so another lease may have come and gone.
                    self._guarded(self._renew)
            except SessionBusy as refusal:
                self._lose(refusal)
        if self._refusal is not None:
            raise self._refusal

    def end(self) -> None:
        """Release the lease by removing its file, unless another process owns it."""
        self._end.set()
        self._thread.join(ENDING)

    def _live(self) -> None:
        try:
            self._guarded(self._settle)
        finally:
            self._settled.set()
        while not self._end.wait(BEAT):
            self._guarded(self._renew)
        self._guarded(self._leave)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Run a file operation; an error of the disk is reported once and does not stop training."""
        try:
            if self._refusal is None:
                act()
        except SessionBusy as refusal:
            self._lose(refusal)
        except Exception as error:  # noqa: BLE001 - a heartbeat that ends would give the session away
            if not self._warned:
                self._warned = True
                self._warn(Note("lease not renewed", f"{FILE} ({first_line(error)})", minutes(QUIET)))

    def _settle(self) -> None:
        """Read the lease back; a process that finds another lease of its term has lost.

        Raises:
            SessionBusy: another process took the session at the same moment.
        """
        for _ in range(_TRIES):
            self._end.wait(SETTLE)
            check_same(self.session, self._lineage)
            if stronger := self._stronger():
                raise _taken_over(self.session, stronger)
            current = lease_file.read(self.session / FILE)
            if isinstance(current, Lease) and current.token == self.lease.token:
                return
            if isinstance(current, Lease) and current.term == self.lease.term:
                raise _taken_over(self.session, current)
            # Overwritten by the previous owner, which does not know of the takeover yet.
            lease_file.write(self.session, self.lease)

    def _renew(self) -> None:
        """Write a new heartbeat unless another process owns the session.

        Raises:
            SessionBusy: another process owns it.
            OSError, StorageError: the disk does not answer.
        """
        with self._turn:
            now = machine.ticking()
            check_same(self.session, self._lineage)
            if stronger := self._stronger():
                raise _taken_over(self.session, stronger)
            if now - self._renewed > QUIET and lease_file.read(self.session / FILE) is None:
                raise SessionBusy(
                    f"may have been trained on another machine: {FILE} could not be renewed for "
                    f"{minutes(now - self._renewed)} and is gone",
                    subject=self.session.name,
                    fix=f"Check its state (fastdb show {argument(self.session.name)}) and run the same command again.",
                )
            # A clock that was set back must not make the lease look old.
            least = self.lease.since + timedelta(seconds=now - self._taken)
            beat = max(machine.wall(), least)
            self.lease = self.lease.model_copy(update={"beats": self.lease.beats + 1, "beat": beat})
            lease_file.write(self.session, self.lease)
            self._renewed = now

    def _leave(self) -> None:
        check_same(self.session, self._lineage)
        current = lease_file.read(self.session / FILE)
        if not isinstance(current, Lease) or current.token != self.lease.token:
            return
        if self._may_live and machine.ticking() - self._taken <= QUIET:
            # The previous owner may be asleep and has not had to look yet. Without a file it would continue to train.
            lease_file.write(self.session, self.lease.model_copy(update={"ended": machine.wall()}))
            return
        (self.session / FILE).unlink(missing_ok=True)

    def _stronger(self) -> Lease | None:
        """Return the lease of highest rank in the session, duplicates included, if it ranks above this one."""
        leases = [lease_file.read(path) for path in lease_file.files(self.session)]
        ranked = [lease for lease in leases if isinstance(lease, Lease) and lease.rank > self.lease.rank]
        return max(ranked, key=lambda lease: lease.rank, default=None)

    def _lose(self, refusal: SessionBusy) -> None:
        self._refusal = self._refusal or refusal
        self._lost()


def take(session: Path, warn: Warn, lost: Callable[[], None], *, take_over: bool = False) -> Held:
    """Take the lease of a session; only for the process that holds its lock on this machine.

    Args:
        warn, lost: see `Held`.
        take_over: also take a lease whose owner is or may be alive.

    Raises:
        SessionBusy: another process owns it.
        StorageError: the folder cannot be written, or the disk does not answer.
    """
    with explained(cache_folder()):
        mine = _new()
    notes, seen, may_live = list[Note](), list[Path](), False
    try:
        with explained(session / FILE):
            for path in lease_file.files(session):
                current = lease_file.read(path)
                if isinstance(current, str):
                    threading.Event().wait(_HALF)
                    current = lease_file.read(path)
                if isinstance(current, Lease):
                    found, lives = _replace(session, current, take_over)
                    notes += found
                    term, may_live = current.term + 1, may_live or lives
                    seen.append(path)
                elif current is not None:
                    # It may be somebody's own file.
                    aside = next_aside(session, ASIDE)
                    path.rename(aside)
                    notes.append(Note("lease set aside", aside.name, current))
                    term, may_live = _UNREADABLE, True
                else:
                    continue
                mine = mine.model_copy(update={"term": max(mine.term, term)})
            lease_file.write(session, mine)
            for duplicate in seen:
                if duplicate.name != FILE:
                    duplicate.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise StorageError(
            "the session's folder does not exist", where=session, fix="Restore it, or mount its disk."
        ) from error
    return Held(session, mine, notes, may_live, warn, lost)


def _taken_over(session: Path, by: Lease) -> SessionBusy:
    here = work_folder(session) / "checkpoints"
    kept = f"; checkpoints since then are kept in {here}" if here.is_dir() else ""
    return SessionBusy(
        f"was taken over by {by.whose} at {when(by.since)}, so this machine no longer writes to it{kept}",
        subject=session.name,
        fix=f"Follow it there; after it has stopped there, resume here with: fastdb train {argument(session.name)}",
    )


def _new() -> Lease:
    """Return a lease of this process that begins now.

    Raises:
        OSError: the cache cannot be written.
    """
    now, pid = machine.wall(), os.getpid()
    return Lease(
        owner=machine.user_name(),
        host=machine.host_name(),
        since=now,
        beat=now,
        beats=0,
        term=1,
        token=uuid.uuid4().hex,
        machine=machine.machine_number(),
        boot=machine.boot(),
        pid=pid,
        began=machine.began(pid) or 0,
    )


def _replace(session: Path, lease: Lease, take_over: bool) -> tuple[list[Note], bool]:
    """Return notes on a lease that may be taken over, none for a released one, and whether its owner may be alive.

    Raises:
        SessionBusy: its owner counts as alive, and `take_over` is false.
    """
    if lease.ended is not None:
        # The process it was left for has read it by now, or slept so long that it gives up on its own.
        return [], (machine.wall() - lease.ended).total_seconds() <= QUIET
    if not lease.is_local():
        verdict = judge(session, lease)
        if verdict.alive and not take_over:
            raise busy(session, lease, verdict)
        why = "as requested" if verdict.alive else "because it counts as gone"
        return [Note("session taken over", lease.whose, f"{why}; {verdict.evidence}")], True
    if machine.began(lease.pid) != lease.began:
        return [Note("trainer crashed", f"process {lease.pid}")], False
    if not take_over:
        # The lock of this machine goes by path, so the session is reached by another path as well.
        raise busy(session, lease, Verdict(True, f"its trainer is process {lease.pid} of this machine", 0))
    return [Note("session taken over", f"process {lease.pid} of this machine", "as requested")], True
