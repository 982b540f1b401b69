"""Whether the machine that trains a session is alive, by observation first and by its clock second."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdb.errors import SessionBusy, StorageError
from fastdb.reporting import argument
from fastdb.runtime import machine
from fastdb.runtime.paths import work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.lease_file import Lease
from fastdb.storage.atomic_write import explained, make_folder, write_json

QUIET = 420.0
"""Seconds without a renewal after which a lease counts as abandoned: three renewals, and a minute for Google Drive to
upload the last. A shorter time ends trainings during slow uploads; a longer time delays the takeover from a dead
machine."""
APART = 60 * 86400.0
"""Seconds between a renewal and now above which a wrong clock is more likely than an abandoned session: a clock that
lost its date is years behind."""
AHEAD = 60.0
"""Seconds by which another machine's clock may be ahead of this machine's."""

_SEEN = "lease-seen.json"


@dataclass(frozen=True)
class Verdict:
    """Whether the owner of a lease counts as alive, with the evidence as a clause.

    `wait` is the number of seconds until the lease counts as abandoned if it is not renewed.
    """

    alive: bool
    evidence: str
    wait: float


class _Seen(BaseModel):
    """Observation of a lease by this machine.

    `first` and `last` are the times at which it had these `beats`, by a clock that is valid within one `boot`. `moved`
    is whether the beats changed between two looks less than `QUIET` apart.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    token: str
    beats: int
    boot: str
    first: float
    last: float
    moved: bool


def judge(session: Path, lease: Lease) -> Verdict:
    """Return whether the owner of another machine's lease counts as alive, and remember this look for the next."""
    seen = _remembered(session, lease)
    quiet, age = seen.last - seen.first, (machine.wall() - lease.beat).total_seconds()
    if quiet > QUIET:
        return Verdict(False, f"its lease has not been renewed for {minutes(quiet)}", 0)
    if seen.moved:
        return Verdict(True, f"its lease was renewed {minutes(quiet)} ago", QUIET - quiet)
    if age < -AHEAD or age > APART:
        clocks = f"its clock reads {when(lease.beat)} or later, and the clock of this machine {when(machine.wall())}"
        return Verdict(True, clocks, QUIET - quiet)
    return Verdict(age <= QUIET, f"its lease was renewed {minutes(max(age, 0))} ago", max(QUIET - max(age, 0), 0))


def refuse_elsewhere(session: Path, fix: str = "") -> None:
    """Raise if another machine trains a session, before it is changed or copied.

    Args:
        fix: a further sentence of the remedy, in place of the offer to take the session over.

    Raises:
        SessionBusy: another machine trains it.
    """
    if elsewhere := _elsewhere(session):
        raise busy(session, *elsewhere, fix)


def busy(session: Path, lease: Lease, verdict: Verdict, fix: str = "") -> SessionBusy:
    """Return the error that names the owner of a lease and the remedies."""
    name = session.name
    take = f"stop it there (fastdb stop {argument(name)}), or take it over: fastdb train {argument(name)} --take-over"
    wait = f"If that machine is gone, run the same command again in {minutes(verdict.wait)}"
    return SessionBusy(
        f"is being trained by {lease.whose} since {when(lease.since)}; {verdict.evidence}",
        subject=name,
        fix=f"{wait}. {fix}" if fix else f"{wait}; otherwise {take}",
    )


def in_use(session: Path) -> str:
    """Return where else a session is being trained, as `in use on HOST since …`; empty if nowhere."""
    if (elsewhere := _elsewhere(session)) is None:
        return ""
    lease, _ = elsewhere
    return f"in use on {lease.host} since {when(lease.since)}"


def when(moment: datetime) -> str:
    """Format a moment to the minute, in UTC."""
    try:
        return moment.astimezone(machine.wall().tzinfo).strftime("%Y-%m-%d %H:%M UTC")
    except OverflowError:
        return moment.strftime("%Y-%m-%d %H:%M")


def minutes(seconds: float) -> str:
    """Format seconds as whole minutes, rounded up, or as hours or days from two of them on."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}s"
    count = max(1, math.ceil(seconds / 60))
    return f"{count} minute{'s'[: count != 1]}"


def _elsewhere(session: Path) -> tuple[Lease, Verdict] | None:
    """Return the lease by which another machine trains a session now, or None.

    An unreadable lease is None too: the process that takes the lease reports it.
    """
    try:
        lease = lease_file.read(session / lease_file.FILE)
        if not isinstance(lease, Lease) or lease.ended is not None or lease.is_local():
            return None
    except OSError:
        return None
    verdict = judge(session, lease)
    return (lease, verdict) if verdict.alive else None


def _remembered(session: Path, lease: Lease) -> _Seen:
    """Return the observations of a lease so far, this look included."""
    path, now, boot = work_folder(session) / _SEEN, machine.ticking(), machine.boot()
    before = None
    with suppress(OSError, ValidationError):
        before = _Seen.model_validate_json(path.read_bytes())
    seen = _Seen(token=lease.token, beats=lease.beats, boot=boot, first=now, last=now, moved=False)
    if before and (before.token, before.boot) == (seen.token, boot) and before.first <= before.last <= now:
        if before.beats == seen.beats:
            seen = before.model_copy(update={"last": now})
        else:
            seen.moved = now - before.last <= QUIET
    # If it cannot be written, each look counts as the first.
    with suppress(OSError, StorageError):
        make_folder(path.parent)
        with explained(path):
            write_json(path, seen.model_dump())
    return seen
