"""What has come from elsewhere, looked at before it counts as a session: where in it the session lies, whether it is
one, and what of it changes with its new name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastdb.checkpoints.checkpoint import complete
from fastdb.errors import ConfigError, FastDBError, SessionError
from fastdb.sessions.session import Session, lay_out
from fastdb.sessions.session_yaml import FILE, BaseModelRecord, Record, new_lineage, read_record, write_record
from fastdb.sharing.transfer import EXPORTS
from fastdb.storage.atomic_write import explained
from fastdb.storage.safe_names import shown

CLASSIC = "instance_images"
"""What a session of the classic notebook has, and no `session.yaml`."""
DEEPEST = 2
"""How many folders down a session may lie in an archive or a folder."""


@dataclass(frozen=True)
class Found:
    """Where a session lies in what has come: "" or `folder/`, and whether it is one of the classic notebook."""

    prefix: str
    classic: bool

    @property
    def name(self) -> str:
        """The name of its folder; empty where it lies at the top."""
        return PurePosixPath(self.prefix).name


def locate(paths: Iterable[str], where: object) -> Found:
    """Find the session among the relative paths of files.

    Raises:
        SessionError: there is none, or more than one.
    """
    found: dict[int, dict[str, bool]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(min(DEEPEST + 1, len(parts))):
            prefix = "".join(f"{part}/" for part in parts[:depth])
            if parts[depth:] == [FILE]:
                found.setdefault(depth, {})[prefix] = False
            elif (parts[depth] == CLASSIC and len(parts) > depth + 1) or parts[depth:] == [f"{CLASSIC}.zip"]:
                found.setdefault(depth, {}).setdefault(prefix, True)
    if not found:
        raise SessionError(
            f"holds no session: no {FILE}, and no {CLASSIC} as the classic notebook has them",
            where=where,
            fix="Name an archive that fastdb share made, or a session's own folder.",
        )
    sessions = found[min(found)]
    if len(sessions) > 1:
        names = ", ".join(shown(prefix.rstrip("/")) for prefix in sorted(sessions)[:5])
        raise SessionError(
            f"holds {len(sessions)} sessions ({names})", where=where, fix="Name the folder of one of them."
        )
    return Found(*next(iter(sessions.items())))


def locate_in(folder: Path, where: object) -> Found:
    """Find the session in a folder that came from `where`.

    Raises:
        SessionError: there is none, or more than one.
        StorageError: it cannot be read.
    """
    with explained(folder):
        stars = ["*/" * depth for depth in range(DEEPEST + 1)]
        paths = [
            path
            for star in stars
            for name in (FILE, f"{CLASSIC}/*", f"{CLASSIC}.zip")
            for path in folder.glob(f"{star}{name}")
        ]
        return locate((path.relative_to(folder).as_posix() for path in paths), where)


def read_come(folder: Path, where: object) -> Record:
    """`session.yaml` of a session that has come; an error tells of `where` it came from, and is of bounded length.

    Raises:
        SessionError: it is missing, damaged, or of a format this version does not know.
        ConfigError: it holds settings that do not fit.
    """
    try:
        return read_record(folder)
    except FastDBError as error:
        kind = ConfigError if isinstance(error, ConfigError) else SessionError
        what = error.what if len(error.what) < 300 else f"{error.what[:300]}..."
        raise kind(
            f"its {FILE} cannot be used: {what}", where=where, fix="Ask for it again, or correct it where it came from."
        ) from error


def settle(folder: Path, name: str, base: BaseModelRecord | None, where: object, called: Sequence[str] = ()) -> None:
    """Make a folder that has come a session of its new name: missing folders are made, exports get its name. It is of
    the lineage it had where checkpoints have come along, else of a new one.

    Args:
        base: the same base model as it is named here.
        where: what an error is told about.
        called: names that it had.

    Raises:
        SessionError: it is no session, or `base` is another model than it was made with.
        StorageError: the folder cannot be written.
    """
    record = read_come(folder, where)
    if base is not None and base.fingerprint != record.base_model.fingerprint:
        raise SessionError(
            "was made with another base model",
            where=where,
            fix=f"Leave out --base, or give the same model; it was {shown(record.base_model.folder)}.",
        )
    try:
        lay_out(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise SessionError(
            f"its {shown(Path(str(error.filename)).name)} is no folder", where=where, fix="Ask for it again."
        ) from error
    for old in {record.name, *called} - {name}:
        _rename_exports(folder, old, name)
    settled = record.model_copy(update={"name": name, "base_model": base or record.base_model})
    if not complete(folder / "checkpoints"):
        settled = settled.model_copy(update={"lineage": new_lineage()})
    if settled != record:
        write_record(folder, settled, keep=False)


def _rename_exports(folder: Path, old: str, new: str) -> None:
    for path in list(folder.iterdir()):
        rest = path.name.removeprefix(old)
        target = folder / f"{new}{rest}"
        if rest != path.name and rest.startswith((".", "_step_")) and rest.endswith(EXPORTS) and not target.exists():
            path.rename(target)


def without_history(session: Session) -> None:
    """Take out of a session's history what was done in it: it has not been trained. Its settings stay.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_record(session.path, session.record.model_copy(update={"runs": (), "extended": ()}), keep=False)
