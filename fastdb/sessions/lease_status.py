"""Whether the machine that trains a session still lives, told from its lease: by what was seen, then by its clock."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdb.errors import SessionBusy, StorageError
from fastdb.runtime import machine
from fastdb.runtime.paths import work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.lease_file import Lease, shown
from fastdb.storage.atomic_write import explained, make_folder, write_json

QUIET = 420.0
"""Seconds without a renewal after which a lease counts as left behind: three renewals, and a minute for Google Drive
to carry the last one here. Less, and slow uploads end trainings; more, and a dead machine is waited for longer."""
APART = 60 * 86400.0
"""Seconds between a lease's last renewal and now by this clock, past which a wrong clock is likelier than a session
left alone: a clock that lost the date is years behind."""
AHEAD = 60.0
"""Seconds by which another machine's clock may be ahead of this one without a word."""

_SEEN = "lease-seen.json"


@dataclass(frozen=True)
class Verdict:
    """Whether the owner of a lease counts as alive; since when nothing was heard of it, as a clause; and the seconds
    until it is left behind if it is not renewed."""

    alive: bool
    heard: str
    wait: float


class _Seen(BaseModel):
    """What this machine saw of a lease: `first` and `last` time with these `beats`, and whether it saw them change,
    with less than `QUIET` between two looks; by a clock that is only good within one `boot`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    token: str
    beats: int
    boot: str
    first: float
    last: float
    moved: bool


def judged(session: Path, lease: Lease) -> Verdict:
    """Whether the owner of a session's lease, which is none of this machine, counts as alive. The look is remembered on
    this machine, so that the next one knows whether the lease was renewed meanwhile.
    """
    seen = _remembered(session, lease)
    quiet, age = seen.last - seen.first, (machine.wall() - lease.beat).total_seconds()
    if quiet > QUIET:
        return Verdict(False, f"not renewed while this machine watched it for {minutes(quiet)}", 0)
    if seen.moved:
        return Verdict(True, f"renewed {minutes(quiet)} ago, as this machine saw", QUIET - quiet)
    if age < -AHEAD or age > APART:
        wrong = (
            f"last renewed on {when(lease.beat)}, if its clock is right, and by this one it is {when(machine.wall())}"
        )
        return Verdict(True, wrong, QUIET - quiet)
    return Verdict(age <= QUIET, f"last heard of {minutes(max(age, 0))} ago", max(QUIET - max(age, 0), 0))


def elsewhere(session: Path) -> tuple[Lease, Verdict] | None:
    """The lease by which another machine trains a session now, as far as is seen here; None where none does, or the
    folder does not tell: that is for whoever takes it to say."""
    try:
        lease = lease_file.read(session / lease_file.FILE)
        if not isinstance(lease, Lease) or lease.ended is not None or of_this_machine(lease):
            return None
    except OSError:
        return None
    verdict = judged(session, lease)
    return (lease, verdict) if verdict.alive else None


def refuse_elsewhere(session: Path, fix: str = "") -> None:
    """Make sure that no other machine trains a session, before something is changed in it or copied out of it.

    Raises:
        SessionBusy: one does; `fix` is the sentence that says what to do then, in place of the offer to take it over.
    """
    if found := elsewhere(session):
        raise busy(session, *found, fix)


def busy(session: Path, lease: Lease, verdict: Verdict, fix: str = "") -> SessionBusy:
    """The refusal that tells who trains a session, since when, when it was heard of, and what can be done."""
    name = session.name
    take = f"stop it there (fastdb stop {name}), or take it over: fastdb train {name} --take-over"
    wait = f"If that machine is gone, run the same command again in {minutes(verdict.wait)}"
    return SessionBusy(
        f"is being trained by {lease.whose} since {when(lease.since)}, {verdict.heard}",
        where=name,
        fix=f"{wait}. {fix}" if fix else f"{wait}; else {take}",
    )


def in_use(session: Path) -> str:
    """Where else a session is being trained, such as `in use on HOST since ...`; empty where it is not."""
    found = elsewhere(session)
    return f"in use on {shown(found[0].host)} since {when(found[0].since)}" if found else ""


def of_this_machine(lease: Lease) -> bool:
    """Whether a lease was written on this machine since it started.

    Raises:
        OSError: the cache cannot be written.
    """
    here = (machine.machine_number(), shown(machine.host_name()), machine.boot())
    return (lease.machine, lease.host, lease.boot) == here


def when(moment: datetime) -> str:
    """A moment to the minute, in UTC."""
    try:
        return moment.astimezone(machine.wall().tzinfo).strftime("%Y-%m-%d %H:%M UTC")
    except OverflowError:
        return moment.strftime("%Y-%m-%d %H:%M")


def minutes(seconds: float) -> str:
    """Seconds as whole minutes, rounded up, or hours or days where that is plenty."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}s"
    count = max(1, math.ceil(seconds / 60))
    return f"{count} minute{'s'[: count != 1]}"


def _remembered(session: Path, lease: Lease) -> _Seen:
    """What was seen of a lease up to now, this look included."""
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
    # Without a place to remember it, each look is the first one.
    with suppress(OSError, StorageError):
        make_folder(path.parent)
        with explained(path):
            write_json(path, seen.model_dump())
    return seen
