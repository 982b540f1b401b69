"""Who trains a session, known to every machine that sees its folder: a lease is taken, renewed, lost, given back.

Between the processes of one machine a lock decides (`training/process.py`), and a lease is taken under it. Between
machines there is nothing to lock with, only a file that the others see sooner or later.

What holds, whatever the clocks say and wherever a machine dies:
- Of two that hold a lease the same one gives way on every machine: leases have a rank, and one that takes over ranks
  above what it took over. Whoever sees that it is outranked writes nothing more into the session, and stops.
- A lease blocks nobody for good: `take_over` takes any, and one that does not change for `QUIET` seconds by the
  onlooker's own clock, which nobody can set, counts as left behind.
- A lease that is seen to change is not taken over unasked, however wrong the clocks are.

What does not hold:
- The file has to arrive first. On a shared disk it is there at once. Two that take a free session there both keep it
  only if one of them stands still for longer than `SETTLE` between its look and its write, which are a millisecond
  apart, and then until it writes or renews its lease. On Google Drive a file takes seconds to minutes to the other
  machine, and so long both train and may write; checkpoints have names and hashes of their own.
- A machine whose lease is looked at for the first time is believed its clock, unless that is over a minute ahead of
  this one or 60 days behind it. With clocks that differ by 7 minutes to 60 days one that lives can be taken over
  unasked: it saves on its own disk and stops, and the two never go on writing.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fastdb.errors import SessionBusy, StorageError
from fastdb.runtime import machine
from fastdb.runtime.paths import cache_folder, work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.lease_file import FILE, Lease, shown
from fastdb.sessions.lease_status import QUIET, Verdict, busy, judged, minutes, when
from fastdb.storage.atomic_write import explained

BEAT = 120.0
"""Seconds from one renewal to the next; three may be missed within `QUIET`."""
SETTLE = 1.0
"""Seconds after which a lease that was just taken is read back: a thousand times what lies between a look and the write
after it. Nobody waits for it, because a trainer loads torch meanwhile."""
ENDING = 10.0
"""Seconds that giving a lease back may take. On a disk that does not answer it stays, and is taken over in time."""

_HALF = 0.2
"""Seconds after which a file that cannot be read is looked at again: it may have been half written."""
_TRIES = 3
"""How often a lease is written again where the one it took over from was renewed in the same moment."""
_UNREADABLE = 1000
"""The term after one that could not be read: it ranks above its owner, should that live. Terms grow by one for each
trainer that died and are at 1 again after one that ended."""

Tell = Callable[[str], None]


class Guard:
    """Says whether a session may still be written to. This one always does: for a session that nobody else reaches."""

    said: tuple[str, ...] = ()
    """What was taken over, lines for the plan."""

    @property
    def words(self) -> tuple[str, ...]:
        """What another process needs to check the same, as arguments of its command line: see `Fence.of`."""
        return ()

    def check(self) -> None:
        """Return if the session may be written to.

        Raises:
            SessionBusy: it was taken over.
        """

    def holds(self) -> bool:
        """Whether the session may be written to."""
        try:
            self.check()
        except SessionBusy:
            return False
        return True


class Fence(Guard):
    """A lease as another process needs it, such as one that copies for a trainer: session, term and token."""

    def __init__(self, session: Path, term: int, token: str) -> None:
        self.session, self.term, self.token = session, term, token

    @classmethod
    def of(cls, session: Path, words: Sequence[str]) -> Guard:
        """The guard whose `words` these are."""
        return cls(session, int(words[0]), words[1]) if words else Guard()

    @property
    def words(self) -> tuple[str, ...]:
        """Term and token."""
        return str(self.term), self.token

    def check(self) -> None:
        """Return if no lease is seen that outranks it; one small read. A disk that does not answer says nothing here:
        whoever goes on to write meets the same.

        Raises:
            SessionBusy: it was taken over; by whom, and when.
        """
        try:
            there = lease_file.read(self.session / FILE)
        except OSError:
            return
        if isinstance(there, Lease) and self.outranked_by(there):
            raise taken_over(self.session, there)

    def outranked_by(self, other: Lease) -> bool:
        """Whether another lease counts more."""
        return other.rank > (self.term, -int(self.token, 16))


class Held(Guard):
    """A lease of this process. `lost` is called, in any thread, when it turns out to be taken over; `tell` with a line
    when it cannot be renewed, once.
    """

    def __init__(
        self, session: Path, lease: Lease, said: Sequence[str], may_live: bool, tell: Tell, lost: Callable[[], None]
    ) -> None:
        self.session, self.lease, self.said = session, lease, tuple(said)
        self.fence = Fence(session, lease.term, lease.token)
        self._may_live, self._tell, self._lost, self._warned = may_live, tell, lost, False
        self._taken = self._renewed = machine.ticking()
        self._refusal: SessionBusy | None = None
        self._end, self._settled, self._turn = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Return if the session may be written to; one small read. The first time it waits until the lease has settled.

        Raises:
            SessionBusy: it was taken over; by whom, and when.
        """
        self._settled.wait(ENDING)
        if self._refusal is None:
            try:
                self.fence.check()
                if machine.ticking() - self._renewed > QUIET:
                    # It slept, or had no disk: another lease may have come and gone.
                    self._guarded(self._renew)
            except SessionBusy as refusal:
                self._lose(refusal)
        if self._refusal is not None:
            raise self._refusal

    @property
    def words(self) -> tuple[str, ...]:
        """Those of its fence."""
        return self.fence.words

    def end(self) -> None:
        """Give the lease back: its file is removed, unless another has it."""
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
        """Do something with the file. What goes wrong is told once and does not touch training."""
        try:
            if self._refusal is None:
                act()
        except SessionBusy as refusal:
            self._lose(refusal)
        except (OSError, StorageError) as error:
            if not self._warned:
                self._warned = True
                self._tell(
                    f"{FILE} cannot be renewed ({error}): training goes on, but another machine that sees nothing new "
                    f"there for {minutes(QUIET)} may take the session over"
                )

    def _settle(self) -> None:
        """Read back what was written; whoever does not find its own lease there has lost.

        Raises:
            SessionBusy: another took the session in the same moment.
        """
        for _ in range(_TRIES):
            self._end.wait(SETTLE)
            if stronger := self._stronger():
                raise taken_over(self.session, stronger)
            there = lease_file.read(self.session / FILE)
            if isinstance(there, Lease) and there.token == self.lease.token:
                return
            if isinstance(there, Lease) and there.term == self.lease.term:
                raise taken_over(self.session, there)
            # By the one it was taken over from, which does not know yet.
            lease_file.write(self.session, self.lease)

    def _renew(self) -> None:
        """Look whether another has it, and write that this one lives.

        Raises:
            SessionBusy: another has it.
            OSError, StorageError: the disk does not answer.
        """
        with self._turn:
            now = machine.ticking()
            if stronger := self._stronger():
                raise taken_over(self.session, stronger)
            if now - self._renewed > QUIET and lease_file.read(self.session / FILE) is None:
                raise _given_up(self.session, now - self._renewed)
            # A clock that was set back must not make it look older than it is.
            least = self.lease.since + timedelta(seconds=now - self._taken)
            beat = max(machine.wall(), least)
            self.lease = self.lease.model_copy(update={"beats": self.lease.beats + 1, "beat": beat})
            lease_file.write(self.session, self.lease)
            self._renewed = now

    def _leave(self) -> None:
        there = lease_file.read(self.session / FILE)
        if not isinstance(there, Lease) or there.token != self.lease.token:
            return
        if self._may_live and machine.ticking() - self._taken <= QUIET:
            # Taken over from a machine that may only be asleep, and done before that one had to look: without a word it
            # would find nothing, and go on.
            lease_file.write(self.session, self.lease.model_copy(update={"ended": machine.wall()}))
            return
        (self.session / FILE).unlink(missing_ok=True)

    def _stronger(self) -> Lease | None:
        """The lease in the session, or in a twin of the file, that counts most, if it counts more than this one."""
        every = (lease_file.read(path) for path in lease_file.files(self.session))
        stronger = [lease for lease in every if isinstance(lease, Lease) and self.fence.outranked_by(lease)]
        return max(stronger, key=lambda lease: lease.rank, default=None)

    def _lose(self, refusal: SessionBusy) -> None:
        self._refusal = self._refusal or refusal
        self._lost()


def take(session: Path, tell: Tell, lost: Callable[[], None], *, take_over: bool = False) -> Held:
    """Take the lease of a session; only for the one process that holds its lock on this machine.

    Args:
        tell: called once with a line, in any thread, when the lease cannot be renewed.
        lost: called, in any thread, when it was taken over.
        take_over: take it also from one that lives, or may.

    Raises:
        SessionBusy: another has it; who, since when, and what can be done.
        StorageError: the folder cannot be written, or the disk does not answer.
    """
    with explained(cache_folder()):
        mine = _new()
    said, seen, may_live = list[str](), list[Path](), False
    try:
        with explained(session / FILE):
            for path in lease_file.files(session):
                there = lease_file.read(path)
                if isinstance(there, str):
                    # It may be on its way.
                    threading.Event().wait(_HALF)
                    there = lease_file.read(path)
                if isinstance(there, Lease):
                    line, lives = _found(session, there, mine, take_over)
                    term, may_live = there.term + 1, may_live or lives
                    seen.append(path)
                elif there is not None:
                    line = f"in use: {path.name} was moved to {lease_file.set_aside(path).name}, because {there}"
                    term, may_live = _UNREADABLE, True
                else:
                    continue
                said += [line] if line else []
                mine = mine.model_copy(update={"term": max(mine.term, term)})
            lease_file.write(session, mine)
            for twin in seen:
                if twin.name != FILE:
                    twin.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise StorageError(
            "the session's folder is not there", where=session, fix="Put it back, or mount it."
        ) from error
    return Held(session, mine, said, may_live, tell, lost)


@contextmanager
def held(session: Path, tell: Tell, lost: Callable[[], None], *, take_over: bool = False) -> Iterator[Held]:
    """Hold the lease of a session, and give it back however the block ends; see `take`.

    Raises:
        SessionBusy, StorageError: see `take`.
    """
    lease = take(session, tell, lost, take_over=take_over)
    try:
        yield lease
    finally:
        lease.end()


def taken_over(session: Path, by: Lease) -> SessionBusy:
    """The refusal for whoever was taken over."""
    here = work_folder(session) / "checkpoints"
    kept = f"; what was trained here since is kept in {here}" if here.is_dir() else ""
    return SessionBusy(
        f"was taken over by {by.whose} at {when(by.since)}, so nothing more is written into it here{kept}",
        where=session.name,
        fix=f"Follow it there; or, when it has stopped there, go on here: fastdb train {session.name}",
    )


def _given_up(session: Path, silent: float) -> SessionBusy:
    return SessionBusy(
        f"may have been trained elsewhere: its {FILE} could not be renewed for {minutes(silent)} and is gone",
        where=session.name,
        fix=f"Look what it holds now (fastdb show {session.name}) and run the same command again.",
    )


def _new() -> Lease:
    """A lease of this process that begins now.

    Raises:
        OSError: the cache cannot be written.
    """
    now, pid = machine.wall(), os.getpid()
    return Lease(
        owner=shown(machine.user_name()),
        host=shown(machine.host_name()),
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


def _found(session: Path, there: Lease, mine: Lease, take_over: bool) -> tuple[str, bool]:
    """What to say of a lease that is taken over, nothing for one that was given back, and whether its owner may live.

    Raises:
        SessionBusy: it lives, and is not to be taken over.
    """
    if there.ended is not None:
        # What it was left for has looked by now, or slept for so long that it knows to give up by itself.
        return "", (machine.wall() - there.ended).total_seconds() <= QUIET
    if not there.same_machine(mine):
        verdict = judged(session, there)
        if verdict.alive and not take_over:
            raise busy(session, there, verdict)
        why = "as was asked" if verdict.alive else "which counts as gone"
        return f"in use: taken over from {there.whose}, {why}: {verdict.heard}", True
    if machine.began(there.pid) != there.began:
        return f"in use: taken over from process {there.pid} of this machine, which ended without a word", False
    if not take_over:
        # The lock of this machine goes by path, and this one got it: the session is reached by another path as well.
        raise busy(session, there, Verdict(True, f"in process {there.pid} of this machine", 0))
    return f"in use: taken over from process {there.pid} of this machine, as was asked", True
