"""Work folders of lineages, and whether a session's folder still holds the session that was opened."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fastdb.errors import SessionBusy
from fastdb.reporting import argument
from fastdb.runtime.paths import HOME, cache_folder, home_of, inode_of, lineage_of
from fastdb.storage.atomic_write import make_folder, write_text
from fastdb.storage.safe_names import shown


def record_home(work: Path, session: Path, lineage: str) -> None:
    """Create a work folder if it is missing, and record the session that it belongs to.

    Raises:
        StorageError: this machine's disk cannot be written.
    """
    make_folder(work)
    folder = session.resolve()
    mount = next(path for path in (folder, *folder.parents) if os.path.ismount(path))
    # Escaped, because a path may be no text.
    values = {"folder": str(folder), "mount": str(mount), "lineage": lineage, "inode": inode_of(folder)}
    write_text(work / HOME, json.dumps(values) + "\n")


def moved_to(session: Path, lineage: str) -> Path | None:
    """Return the folder beside a session's former folder that holds it now, after it was renamed."""
    with suppress(OSError):
        same = [other for other in neighbours(session) if lineage_of(other) == lineage]
        return renamed_home(lineage, same) or next(iter(same), None)
    return None


def renamed_home(lineage: str, folders: Iterable[Path]) -> Path | None:
    """Return which folder is the one that the work of a lineage belonged to, under another name; copies are not."""
    home = home_of(cache_folder() / "work" / lineage)
    if home is None or not home.inode:
        return None
    return next((folder for folder in folders if inode_of(folder) == home.inode), None)


def check_same(session: Path, lineage: str) -> None:
    """Raise if a session's folder was renamed, or holds another session now; a disk that is away proves nothing.

    Raises:
        SessionBusy: naming the place of its checkpoints on this machine.
    """
    if not lineage or (current := lineage_of(session)) == lineage:
        return
    kept = cache_folder() / "work" / lineage / "checkpoints"
    if other := moved_to(session, lineage):
        raise SessionBusy(
            f"was renamed to {shown(other.name)} while it was in use",
            subject=session.name,
            fix=f"Its checkpoints on this machine belong to the new name: fastdb publish {argument(other.name)}",
        )
    if current:
        raise SessionBusy(
            f"was deleted or restarted while it was in use, and its folder holds another session now; checkpoints of "
            f"the former one are kept in {kept}",
            subject=session.name,
            fix="To delete those run: fastdb free --unfinished",
        )


def neighbours(session: Path) -> list[Path]:
    """Return the other folders beside a session's folder.

    Raises:
        OSError: the folder cannot be read.
    """
    root = session.parent
    if not root.is_dir():
        return []
    return [path for path in sorted(root.iterdir()) if path != session and path.name[0] != "." and path.is_dir()]
