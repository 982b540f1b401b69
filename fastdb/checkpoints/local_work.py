"""Work of sessions on this machine's own disk: checkpoints set aside, and the work of sessions that are gone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastdb.checkpoints.checkpoint import Checkpoint, complete
from fastdb.checkpoints.progress import STAGES
from fastdb.checkpoints.publish import LOCK
from fastdb.runtime.paths import SESSION_FILE as FILE
from fastdb.runtime.paths import Home, cache_folder, home_of, lineages_of, work_lineages
from fastdb.storage.delete import bytes_of
from fastdb.storage.set_aside import ASIDE

TRAINING_LOCK = "training.lock"
"""Lock of a trainer in its work folder."""


@dataclass(frozen=True)
class GoneWork:
    """Work of a session that is gone: its disk is mounted and does not hold it."""

    folder: Path
    session: Path
    """Where the session was."""
    newest: Checkpoint | None
    published: str
    """Whether the newest checkpoint was ever in the session's folder, as a clause; empty without a checkpoint."""
    bytes: int

    @property
    def title(self) -> str:
        """The session's name, its newest checkpoint, and whether that was published."""
        if self.newest is None:
            return f"{self.session.name}: logs"
        return f"{self.session.name}: {self.newest.stage} step {self.newest.step}, {self.published}"


def gone_work(root: Path | None = None) -> list[GoneWork]:
    """Return the work of sessions that are gone from the folder that they were in.

    Args:
        root: leave out sessions that were moved there; their files are read for that.

    Raises:
        OSError: the cache cannot be read.
    """
    works = cache_folder() / "work"
    gone = []
    folders = sorted(works.iterdir()) if works.is_dir() else []
    homes_of = {work: _homes(work) for work in folders if not work.is_symlink()}
    claims = Counter(folder for homes in homes_of.values() for folder in {home.folder for home in homes})
    for work, homes in homes_of.items():
        if root is None and any(claims[home.folder] == 1 and (home.folder / FILE).exists() for home in homes):
            continue  # Its own session, as far as can be told without a look into files, which may be slow to open.
        if homes and all(home.is_gone() and not _is_held_by(home, root) for home in homes) and not _in_use(work):
            newest = _newest(work)
            gone.append(GoneWork(work, homes[0].folder, newest, _published(work, newest), bytes_of(work)))
    return gone


def remove_dead_links() -> None:
    """Delete links from the paths of sessions to work that was deleted.

    Raises:
        OSError: the cache cannot be read.
    """
    works = cache_folder() / "work"
    for link in works.iterdir() if works.is_dir() else ():
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)


def set_aside_here(local: Path) -> list[Path]:
    """Return the folders of checkpoints on this machine that were set aside."""
    return sorted(path for path in local.glob(f"{ASIDE}*") if path.is_dir())


def _homes(work: Path) -> list[Home]:
    """Return the session of a work folder, one for each lineage; none if it cannot be told.

    Earlier versions recorded none, but their logs name the folder to which a checkpoint was published.
    """
    if home := home_of(work):
        return [home]
    paths = [Path(str(event.get("path"))) for event in _events(work)]
    folders = {path.parents[1] for path in paths if len(path.parents) > 1 and path.parent.name == "checkpoints"}
    lineages = work_lineages(work, "**/state.json")
    if len(folders) != 1 or not lineages:
        return []
    (folder,) = folders
    mount = next((path for path in folder.parents if os.path.ismount(path)), Path("/"))
    return [Home(folder, mount, lineage) for lineage in sorted(lineages)] if folder.parent.is_dir() else []


def _is_held_by(home: Home, root: Path | None) -> bool:
    """Return whether a session of this lineage is beside its former folder or below `root`; also if unknown."""
    for folder in {home.folder.parent, root or home.folder.parent}:
        try:
            entries = list(folder.iterdir()) if folder.is_dir() else []
        except OSError:
            return True
        if any(home.lineage in lineages_of(entry) for entry in entries):
            return True
    return False


def _in_use(work: Path) -> bool:
    """Return whether a trainer or publisher of this machine works in a folder."""
    for path in (work / TRAINING_LOCK, work / LOCK):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
    return False


def _newest(work: Path) -> Checkpoint | None:
    local = work / "checkpoints"
    checkpoints = complete(local) or [checkpoint for folder in set_aside_here(local) for checkpoint in complete(folder)]
    order = [checkpoint for checkpoint in checkpoints if checkpoint.stage in STAGES]
    return max(order, key=lambda checkpoint: (STAGES.index(checkpoint.stage), checkpoint.step), default=None)


def _published(work: Path, newest: Checkpoint | None) -> str:
    if newest is None:
        return ""
    steps = [int(event["step"]) for event in _events(work) if event["stage"] == newest.stage]
    if newest.step in steps:
        return "published"
    return f"published up to step {max(steps)}" if steps else "never published"


def _events(work: Path) -> Iterator[dict[str, Any]]:
    """Yield the events about published checkpoints in the logs of a work folder."""
    for log in sorted([*work.glob("run-*.jsonl"), *work.glob("publish-*.jsonl")]):
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if '"published"' in line:
                    try:
                        event: dict[str, Any] = json.loads(line)
                    except ValueError:
                        continue
                    if event["event"] == "published":
                        yield event
