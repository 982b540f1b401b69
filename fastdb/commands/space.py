"""Verbs about space: what each session and each kind of file costs, and giving some of it back. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb import console
from fastdb.checkpoints.disk_usage import KINDS, REMOVABLE, Cost, costs_of, removable
from fastdb.checkpoints.retention import KEEP, delete_checkpoint, retention
from fastdb.commands.sessions import SessionLike, open_session
from fastdb.errors import ConfigError, SessionBusy
from fastdb.reporting import format_bytes
from fastdb.runtime.paths import cache_folder, sessions_root
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session_yaml import FILE
from fastdb.sharing.transfer import rests
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of, mapped_files, remove

if TYPE_CHECKING:
    from fastdb.downloads.model_cache import Entry
    from fastdb.sessions.session import Session

Confirm = Callable[[str], bool]
"""Asks a person a question; whether they said yes."""


@dataclass(frozen=True)
class Spent:
    """What a session's folder costs."""

    path: Path
    costs: tuple[Cost, ...]

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(cost.bytes for cost in self.costs)

    def of(self, kind: str) -> int:
        """Bytes of one of `KINDS`."""
        return sum(cost.bytes for cost in self.costs if cost.kind == kind)


def space(sessions: Sequence[SessionLike] = (), root: str | Path | None = None) -> list[Spent]:
    """Show what sessions cost, in bytes of their files, and what is free; for those that are named each checkpoint too.

    Nothing is opened but folders, and named sessions' records.

    Raises:
        SessionError: there is no such session.
        StorageError: a folder may not be read.
    """
    base = sessions_root(root)
    with explained(base):
        if sessions:
            folders = [open_session(session, root).path for session in sessions]
        else:
            folders = sorted(path for path in base.iterdir() if (path / FILE).is_file()) if base.is_dir() else []
        spent = [Spent(folder, tuple(costs_of(folder))) for folder in folders]
        caches = [] if sessions else _caches()
        lines = disks([*(folders if sessions else [base]), *([cache_folder()] if caches else [])])
    if sessions:
        for one in spent:
            _show(one)
    else:
        _list(spent, base)
        with explained(base):
            for path in rests(base):
                console.say(f"{path.name}: {format_bytes(bytes_of(path))} of a session that was never finished")
            if rests(base):
                console.say("fastdb free --unfinished removes them")
    if caches:
        console.say()
        console.table((f"on this machine, in {cache_folder()}", "size"), [(n, format_bytes(b)) for n, b in caches])
    for line in lines:
        console.say(line)
    return spent


def free(session: SessionLike, what: Sequence[str], *, confirm: Confirm, root: str | Path | None = None) -> int:
    """Say what of a session would be removed and how many bytes it has, ask, and remove it; returns the bytes.

    Of checkpoints only those go that have two newer ones of their stage that verify on a fresh read, and of pictures
    only those that were generated. What is removed does not come back from a trash.

    Args:
        what: some of `REMOVABLE`.
        confirm: called with the question; nothing is removed unless it gives True.

    Raises:
        ConfigError: nothing was named, or something that cannot be removed.
        SessionBusy: it is being trained, or has changed while the question was open.
        StorageError: something cannot be removed; what went before it is gone.
    """
    from fastdb.sessions.file_hashes import forget_files
    from fastdb.training.process import training_lock

    session = open_session(session, root)
    _check_kinds(session, what)
    _check_still(session)
    with explained(session.path):
        before = costs_of(session.path)
        going = [cost for kind in dict.fromkeys(what) for cost in removable(session, kind)]
    for kind in dict.fromkeys(what):
        _say_going(session, kind, [cost for cost in going if cost.kind == kind])
    total = sum(cost.bytes for cost in going)
    if not going:
        return 0
    if not confirm(f"remove {format_bytes(total)} of {session.name} for good?"):
        console.say("nothing was removed")
        return 0
    with training_lock(session.path), explained(session.path):
        session.check_there()
        refuse_elsewhere(session.path, "Or stop it there.")
        if costs_of(session.path) != before:
            raise SessionBusy(
                "has changed since you were asked, so nothing was removed",
                where=session.name,
                fix="Run the same command again.",
            )
        mapped = mapped_files()
        for cost in going:
            _take(cost, mapped)
        forget_files(session.path, [cost.path for cost in going])
    console.say(f"removed {format_bytes(total)}")
    for line in disks([session.path]):
        console.say(line)
    return total


def free_models(*, confirm: Confirm, wanted: int = 0) -> int:
    """Remove fetched and converted base models from this machine, the least recently used first; returns the bytes.

    They are fetched again when they are needed. One that another process is fetching stays.

    Args:
        confirm: called with the question; nothing is removed unless it gives True.
        wanted: bytes after which it is enough; 0 removes all.

    Raises:
        SessionBusy: a session is being trained on this machine, which may need any of them.
        StorageError: something cannot be removed.
    """
    from fastdb.downloads.model_cache import entries, locked_now, remove_entry

    _check_none_trains()
    with explained(cache_folder()):
        going: list[Entry] = []
        for entry in entries():
            if wanted and sum(one.bytes for one in going) >= wanted:
                break
            if locked_now(entry.folder):
                console.say(f"stays, for it is being fetched: {entry.source}")
            else:
                going.append(entry)
        if not going:
            console.say("there are no fetched models to remove")
            return 0
        rows = [(one.source, format_bytes(one.bytes), one.used.strftime("%Y-%m-%d %H:%M")) for one in going]
        console.table(("would go", "size", "last used"), rows)
        total = sum(one.bytes for one in going)
        if not confirm(f"remove {format_bytes(total)} of base models? They are fetched again when they are needed"):
            console.say("nothing was removed")
            return 0
        _check_none_trains()
        gone = sum(remove_entry(one.folder) for one in going)
    console.say(f"removed {format_bytes(gone)}")
    for line in disks([cache_folder()]):
        console.say(line)
    return gone


def free_unfinished(*, confirm: Confirm, root: str | Path | None = None) -> int:
    """Remove what was to become sessions when its making was cut off, at least a day ago; returns the bytes.

    Args:
        confirm: called with the question; nothing is removed unless it gives True.

    Raises:
        StorageError: something cannot be removed.
    """
    base = sessions_root(root)
    with explained(base):
        going = rests(base)
        sizes = [bytes_of(path) for path in going]
        if not going:
            console.say(f"there is nothing unfinished in {base} that is older than a day")
            return 0
        console.table(
            ("would go", "size"), [(path.name, format_bytes(n)) for path, n in zip(going, sizes, strict=True)]
        )
        if not confirm(f"remove {format_bytes(sum(sizes))} for good?"):
            console.say("nothing was removed")
            return 0
        # Once more: one may have been gone on with while the question was open.
        gone = sum(remove(path) for path in rests(base) if path in going)
    console.say(f"removed {format_bytes(gone)}")
    return gone


def _list(spent: Sequence[Spent], base: Path) -> None:
    console.say(f"{len(spent)} session{'s'[: len(spent) != 1]} in {base}")
    if not spent:
        return
    shown = [kind for kind in KINDS if any(one.of(kind) for one in spent)]
    rows = [[one.path.name, *(_size(one.of(kind)) for kind in shown), format_bytes(one.bytes)] for one in spent]
    if len(spent) > 1:
        sums = [_size(sum(one.of(kind) for one in spent)) for kind in shown]
        rows.append(["all", *sums, format_bytes(sum(one.bytes for one in spent))])
    console.table(("session", *shown, "in all"), rows)


def _show(one: Spent) -> None:
    rows = []
    for kind in KINDS:
        each = [cost for cost in one.costs if cost.kind == kind and cost.bytes]
        if not each:
            continue
        rows.append((kind, format_bytes(one.of(kind))))
        if kind in ("checkpoints", "set-aside", "unfinished", "exports"):
            rows += [(f"  {cost.path.relative_to(one.path).as_posix()}", format_bytes(cost.bytes)) for cost in each]
    console.table((one.path.name, "size"), [*rows, ("in all", format_bytes(one.bytes))])
    console.say()


def _size(count: int) -> str:
    return format_bytes(count) if count else "-"


def _caches() -> list[tuple[str, int]]:
    """What this machine keeps that can be made or fetched again: models one by one, the rest by folder."""
    from fastdb.downloads.model_cache import entries

    found = [(f"models: {entry.source}", entry.bytes) for entry in entries() if entry.bytes > 1000]
    folder = cache_folder()
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    return found + [(path.name, count) for path in others if path.name != "models" and (count := bytes_of(path))]


def disks(folders: Sequence[Path]) -> list[str]:
    """The free space of the file systems that folders lie on, a line for each; folders need not be there yet.

    Raises:
        StorageError: the disk does not answer.
    """
    lines: dict[int, str] = {}
    for folder in folders:
        with explained(folder):
            there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
            usage = shutil.disk_usage(there)
            free, whole = format_bytes(usage.free), format_bytes(usage.total)
            lines.setdefault(there.stat().st_dev, f"free: {free} of {whole}, where {folder} lies")
    return list(lines.values())


def _check_kinds(session: Session, what: Sequence[str]) -> None:
    unknown = [kind for kind in what if kind not in REMOVABLE]
    if unknown or not what:
        raise ConfigError(
            f"cannot be removed: {unknown[0]}" if unknown else "nothing was named that could be removed",
            where=session.name,
            fix=f"Name with --what one of {', '.join(REMOVABLE)}; fastdb space {session.name} shows what each costs.",
        )


def _check_still(session: Session) -> None:
    from fastdb.training.process import find

    if find(session) is not None:
        raise SessionBusy(
            "is being trained, so nothing is removed",
            where=session.name,
            fix=f"Wait, or stop it first: fastdb stop {session.name}",
        )
    refuse_elsewhere(session.path, "Or stop it there.")


def _check_none_trains() -> None:
    from fastdb.training.process import any_training

    if any_training():
        raise SessionBusy(
            "a session is being trained on this machine and may need any of its models",
            where="models",
            fix="Try again when that is over.",
        )


def _say_going(session: Session, kind: str, going: Sequence[Cost]) -> None:
    if going:
        size = format_bytes(sum(cost.bytes for cost in going))
        console.say(f"would go of {kind}: {size} in {len(going)}")
        for cost in going if len(going) <= 20 else ():
            console.say(f"  {cost.path.relative_to(session.path).as_posix()}  {format_bytes(cost.bytes)}")
        return
    console.say(f"nothing of {kind} can go{_why(session, kind)}")


def _why(session: Session, kind: str) -> str:
    if kind == "checkpoints":
        keep = retention(session)
        kept = f", nor one at a multiple of {keep.every} steps (checkpoints.keep_every in its session.yaml)"
        found = f", nor that of step {keep.best}, which its evaluation says to use"
        return (
            f": none goes that has not {'two' if keep.last == KEEP else keep.last} newer ones of its stage which verify"
            f"{kept if keep.every else ''}{'' if keep.best is None else found}"
        )
    if kind == "class-images" and any(session.class_images.glob("class-*.png")):
        return " before training is over: checkpoints go on only with the very images they began with"
    return ""


def _take(cost: Cost, mapped: Collection[int]) -> None:
    if cost.kind == "checkpoints":
        delete_checkpoint(cost.path)
    else:
        remove(cost.path, mapped=mapped)
