"""Verbs about disk space: space, free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.checkpoints.disk_usage import KINDS, REMOVABLE, Cost, costs_of, removable
from fastdb.checkpoints.local_work import GoneWork, gone_work, remove_dead_links, set_aside_here
from fastdb.checkpoints.retention import delete_checkpoint, retention
from fastdb.downloads.model_cache import entries, locked_now, remove_entry
from fastdb.errors import ConfigError, SessionBusy
from fastdb.models.registry import MINI
from fastdb.reporting import SILENT, Note, Report, argument, format_bytes
from fastdb.runtime.paths import cache_folder, expanded, sessions_root
from fastdb.sessions.exports import dependents
from fastdb.sessions.file_hashes import forget_files
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike
from fastdb.sessions.session_yaml import FILE
from fastdb.sharing.transfer import unfinished_sessions
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of, mapped_files, remove
from fastdb.training import process

if TYPE_CHECKING:
    from fastdb.downloads.model_cache import Entry
    from fastdb.sessions.session import Session


@dataclass(frozen=True)
class SessionUsage:
    """The disk usage of a session's folder."""

    path: Path
    costs: tuple[Cost, ...]
    base: str = ""
    """A person's own base model, outside the session's folder; only for named sessions, whose files are opened."""
    base_bytes: int = 0
    """Its size; 0 if it is missing."""
    here: tuple[Cost, ...] = ()
    """Checkpoints on this machine that were set aside; only for named sessions."""

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(cost.bytes for cost in self.costs)

    def of(self, kind: str) -> int:
        """Return the bytes of one kind of files."""
        return sum(cost.bytes for cost in self.costs if cost.kind == kind)


@dataclass(frozen=True)
class Disk:
    """The free space of a file system, and a folder on it."""

    folder: Path
    free: int
    total: int


@dataclass(frozen=True)
class Usage:
    """The disk usage of sessions and, of all sessions, of this machine's cache."""

    root: Path
    sessions: tuple[SessionUsage, ...]
    unfinished: tuple[tuple[str, int], ...]
    """Names and bytes of sessions whose creation was interrupted."""
    gone: tuple[GoneWork, ...]
    """Work on this machine of sessions that are gone."""
    cache: tuple[tuple[str, int], ...]
    """Names and bytes of what this machine can download or make again."""
    disks: tuple[Disk, ...]
    kinds: tuple[str, ...] = KINDS
    """Kinds of files, in the order to show them."""


@dataclass(frozen=True)
class Removal:
    """What a person is asked to confirm: names and bytes of files, grouped by kind."""

    subject: str
    """The session, `base models`, `unfinished sessions` or `the work of sessions that are gone`."""
    files: tuple[tuple[str, str, int], ...]
    """Kind, name and bytes of each."""

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(size for _, _, size in self.files)


Confirm = Callable[[Removal], bool]
"""Shows a person what would be removed; returns whether they agreed."""


def space(sessions: Sequence[SessionLike] = (), root: str | Path | None = None) -> Usage:
    """Return what sessions use, in bytes of their files, and what is free; all sessions by default.

    Raises:
        SessionError: no such session.
        StorageError: a folder cannot be read.
    """
    base = sessions_root(root)
    with explained(base):
        if sessions:
            named = [Session.open(session, root) for session in sessions]
            used = tuple(_details(session) for session in named)
            folders = [session.path for session in named]
        else:
            folders = sorted(path for path in base.iterdir() if (path / FILE).is_file()) if base.is_dir() else []
            used = tuple(SessionUsage(folder, tuple(costs_of(folder))) for folder in folders)
        cache = () if sessions else tuple(_cache())
        unfinished = () if sessions else tuple((path.name, bytes_of(path)) for path in unfinished_sessions(base))
        places = [*(folders if sessions else [base]), *([cache_folder()] if cache else [])]
        gone = () if sessions else tuple(gone_work())
        return Usage(base, used, unfinished, gone, cache, tuple(disks(places)))


def free(
    session: SessionLike,
    what: Sequence[str],
    *,
    confirm: Confirm,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> int:
    """Delete files of a session for good, past the Drive trash, once a person has confirmed; return their bytes.

    A checkpoint can be deleted only if two newer ones of its stage verify on a fresh read; of images only generated
    ones.

    Args:
        what: some of `REMOVABLE`.

    Raises:
        ConfigError: nothing was named, or something that cannot be deleted.
        SessionBusy: the session is being trained, or changed while the question was open.
        StorageError: a file cannot be deleted; those before it are gone.
    """
    session = Session.open(session, root)
    unknown = [kind for kind in what if kind not in REMOVABLE]
    if unknown or not what:
        raise ConfigError(
            f"{unknown[0]} cannot be deleted" if unknown else "nothing to delete was named",
            where=session.name,
            fix=f"Name with --what one of {', '.join(REMOVABLE)}; fastdb space {argument(session.name)} shows their "
            "sizes.",
        )
    _check_not_trained(session)
    kinds = list(dict.fromkeys(what))
    with explained(session.path):
        before = costs_of(session.path)
        costs = [cost for kind in kinds for cost in _removable(session, kind)]
    for kind in kinds:
        if not any(cost.kind == kind for cost in costs):
            report.note(_nothing_removable(session, kind))
    files = [(cost.kind, _name_of(session, cost.path), cost.bytes) for cost in costs]
    if not costs:
        return 0
    if not confirm(Removal(session.name, tuple(files))):
        report.note(Note("nothing deleted"))
        return 0
    with process.training_lock(session.path), explained(session.path):
        session.check_there()
        refuse_elsewhere(session.path, "Or stop it there.")
        if costs_of(session.path) != before:
            raise SessionBusy(
                "changed while the question was open; nothing was deleted",
                subject=session.name,
                fix="Run the same command again.",
            )
        mapped = mapped_files()
        for cost in costs:
            _take(cost, mapped)
        forget_files(session.path, [cost.path for cost in costs if cost.path.is_relative_to(session.path)])
    total = sum(cost.bytes for cost in costs)
    _report_deleted(total, session.path, report)
    return total


def free_models(*, confirm: Confirm, wanted: int = 0, report: Report = SILENT) -> int:
    """Delete downloaded and converted base models from this machine, least recently used first; return their bytes.

    They are downloaded or converted again when they are needed. Files outside the cache stay, and so does a model that
    another process downloads.

    Args:
        wanted: bytes to stop at; 0 deletes all.

    Raises:
        SessionBusy: a session is being trained on this machine, which may need any of them.
        StorageError: a file cannot be deleted.
    """
    _check_none_trains()
    with explained(cache_folder()):
        models: list[Entry] = []
        for entry in entries():
            if wanted and sum(model.bytes for model in models) >= wanted:
                break
            if locked_now(entry.folder):
                report.note(Note("kept while downloading", entry.title))
            else:
                models.append(entry)
        if not models:
            report.note(Note("no models to delete"))
            return 0
        rows = [(f"last used {model.used:%Y-%m-%d %H:%M}", model.title, model.bytes) for model in models]
        if not confirm(Removal("base models", tuple(rows))):
            report.note(Note("nothing deleted"))
            return 0
        _check_none_trains()
        deleted = sum(remove_entry(model.folder) for model in models)
    _report_deleted(deleted, cache_folder(), report)
    return deleted


def free_unfinished(*, confirm: Confirm, root: str | Path | None = None, report: Report = SILENT) -> int:
    """Delete folders of sessions whose creation was interrupted at least a day ago, and work of sessions that are gone.

    Work on this machine counts as gone only if the session's disk is mounted and does not hold the session.

    Returns:
        The bytes deleted.

    Raises:
        StorageError: a file cannot be deleted.
    """
    base = sessions_root(root)
    with explained(base):
        folders, gone = unfinished_sessions(base), gone_work(base)
        if not folders and not gone:
            report.note(Note("no unfinished sessions", str(base)))
            return 0
        rows = [("unfinished", path.name, bytes_of(path)) for path in folders]
        rows += [("work of sessions that are gone", work.title, work.bytes) for work in gone]
        subjects = {"unfinished sessions": folders, "the work of sessions that are gone": gone}
        if not confirm(Removal(" and ".join(name for name, found in subjects.items() if found), tuple(rows))):
            report.note(Note("nothing deleted"))
            return 0
        # Listed again: an interrupted command may have resumed while the question was open.
        deleted = sum(remove(path) for path in unfinished_sessions(base) if path in folders)
        deleted += sum(remove(work.folder) for work in gone_work(base) if work.folder in {each.folder for each in gone})
        remove_dead_links()
    _report_deleted(deleted, base, report)
    return deleted


def disks(folders: Sequence[Path]) -> list[Disk]:
    """Return the free space of each file system that folders are on; folders need not exist yet.

    Raises:
        StorageError: the disk does not answer.
    """
    by_device: dict[int, Disk] = {}
    for folder in folders:
        with explained(folder):
            existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
            usage = shutil.disk_usage(existing)
            by_device.setdefault(existing.stat().st_dev, Disk(folder, usage.free, usage.total))
    return list(by_device.values())


def _report_deleted(count: int, folder: Path, report: Report) -> None:
    report.note(Note("deleted", format_bytes(count)))
    for disk in disks([folder]):
        report.note(Note("free space", f"{format_bytes(disk.free)} of {format_bytes(disk.total)}", str(folder)))


def _details(session: Session) -> SessionUsage:
    """Return the disk usage of a session, with a person's own base model and the files that were set aside here."""
    base, own = session.record.base_model, ("", 0)
    path = expanded(base.folder)
    if not base.source and base.folder != MINI and cache_folder() not in path.parents:
        own = str(path), bytes_of(path) if path.exists() else 0
    return SessionUsage(session.path, tuple(costs_of(session.path)), *own, tuple(_here(session)))


def _removable(session: Session, kind: str) -> list[Cost]:
    """Return the files of a kind that can be deleted, here too; an export that is a base model of another stays."""
    costs = removable(session, kind)
    if kind == "set-aside":
        return costs + _here(session)
    if kind != "exports":
        return costs
    needed = {expanded(other.record.base_model.folder) for other in dependents(session)}
    return [cost for cost in costs if cost.path not in needed]


def _here(session: Session) -> list[Cost]:
    return [Cost("set-aside", path, bytes_of(path)) for path in set_aside_here(session.local_checkpoints)]


def _name_of(session: Session, path: Path) -> str:
    if path.is_relative_to(session.path):
        return path.relative_to(session.path).as_posix()
    return f"{path.relative_to(session.work).as_posix()} on this machine"


def _cache() -> list[tuple[str, int]]:
    """Return what this machine can download or make again: models one by one, the rest by folder."""
    models = [(f"models: {entry.title}", entry.bytes) for entry in entries() if entry.bytes > 1000]
    folder = cache_folder()
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    return models + [(path.name, size) for path in others if path.name != "models" and (size := bytes_of(path))]


def _check_not_trained(session: Session) -> None:

    if process.find(session) is not None:
        raise SessionBusy(
            "is being trained; nothing was deleted",
            subject=session.name,
            fix=f"Wait, or stop it first: fastdb stop {argument(session.name)}",
        )
    refuse_elsewhere(session.path, "Or stop it there.")


def _check_none_trains() -> None:
    if process.any_training():
        raise SessionBusy(
            "a session is being trained on this machine and may need any of its models",
            where="models",
            fix="Try again when training has ended.",
        )


def _nothing_removable(session: Session, kind: str) -> Note:
    """Return why nothing of a kind can be deleted."""
    if kind == "checkpoints":
        keep = retention(session)
        kept = [f"each stage keeps its {keep.last} newest valid checkpoints"]
        if keep.every:
            kept.append(f"those at multiples of {keep.every} steps (checkpoints.keep_every)")
        if keep.best is not None:
            kept.append(f"the one of step {keep.best}, which the evaluation chose")
        if keep.undecided:
            kept.append(f"those of steps {', '.join(map(str, keep.undecided))}, which it compared last")
        return Note("no checkpoint to delete", session.name, " and ".join(kept))
    if kind == "class-images" and any(session.class_images.glob("class-*.png")):
        return Note("class images needed", session.name)
    if kind == "exports" and (others := dependents(session)):
        return Note("exports needed", session.name, ", ".join(other.name for other in others))
    return Note("nothing to delete", session.name, kind)


def _take(cost: Cost, mapped: Collection[int]) -> None:
    if cost.kind == "checkpoints":
        delete_checkpoint(cost.path)
    else:
        remove(cost.path, mapped=mapped)
