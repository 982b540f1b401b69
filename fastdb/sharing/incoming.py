"""Validation of received sessions, and their conversion to a new name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastdb.checkpoints.checkpoint import complete
from fastdb.errors import ConfigError, FastDBError, SessionError
from fastdb.sessions.session import lay_out
from fastdb.sessions.session_yaml import (
    FILE,
    BaseModelRecord,
    Record,
    missing_parts,
    new_lineage,
    read_record,
    write_record,
)
from fastdb.sharing.transfer import EXPORTS
from fastdb.storage.atomic_write import explained
from fastdb.storage.safe_names import shown

CLASSIC = "instance_images"
"""Folder that identifies a session of the classic notebook, which has no `session.yaml`."""
DEEPEST = 2
"""Most folders above a session in an archive or folder."""


@dataclass(frozen=True)
class Found:
    """Path of a session in an archive or folder, "" or `folder/`, and whether it is of the classic notebook."""

    prefix: str
    classic: bool

    @property
    def name(self) -> str:
        """Name of its folder; empty at the top."""
        return PurePosixPath(self.prefix).name


def locate(paths: Iterable[str], where: object) -> Found:
    """Find the session among the relative paths of files.

    Raises:
        SessionError: there is no session, or more than one.
    """
    candidates: dict[int, dict[str, bool]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(min(DEEPEST + 1, len(parts))):
            prefix = "".join(f"{part}/" for part in parts[:depth])
            if parts[depth:] == [FILE]:
                candidates.setdefault(depth, {})[prefix] = False
            elif (parts[depth] == CLASSIC and len(parts) > depth + 1) or parts[depth:] == [f"{CLASSIC}.zip"]:
                candidates.setdefault(depth, {}).setdefault(prefix, True)
    if not candidates:
        raise SessionError(
            f"contains no session: neither {FILE} nor {CLASSIC} of the classic notebook",
            subject=where,
            fix="Name an archive that fastdb share made, or a session's own folder.",
        )
    sessions = candidates[min(candidates)]
    if len(sessions) > 1:
        names = ", ".join(shown(prefix.rstrip("/")) for prefix in sorted(sessions)[:5])
        raise SessionError(
            f"contains {len(sessions)} sessions ({names})", subject=where, fix="Name the folder of a single session."
        )
    return Found(*next(iter(sessions.items())))


def locate_in(folder: Path, where: object) -> Found:
    """Find the session in a folder that came from `where`.

    Raises:
        SessionError: there is no session, or more than one.
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


def read_received(folder: Path, where: object) -> Record:
    """Return the record of a received session, with errors of bounded length that name its origin, `where`.

    Raises:
        SessionError: it is missing, damaged, or has an unsupported format.
        ConfigError: it contains invalid settings.
    """
    try:
        if missing := missing_parts(folder):
            raise SessionError(f"it lacks {', '.join(missing)}", fix="Get a new copy.")
        return read_record(folder)
    except FastDBError as error:
        kind = ConfigError if isinstance(error, ConfigError) else SessionError
        what = error.what if len(error.what) < 300 else f"{error.what[:300]}..."
        raise kind(
            f"its {FILE} cannot be used: {what}", where=where, fix="Get a new copy, or correct the original."
        ) from error


def settle(folder: Path, name: str, base: BaseModelRecord | None, where: object, called: Sequence[str] = ()) -> None:
    """Make a received folder a session of a new name; its lineage is kept only if it has checkpoints.

    Missing folders are created, and exports renamed.

    Args:
        base: the same base model under its name on this machine.
        where: the origin, for messages.
        called: earlier names.

    Raises:
        SessionError: it is invalid, or `base` is a different model.
        StorageError: the folder cannot be written.
    """
    record = read_received(folder, where)
    if base is not None and base.fingerprint != record.base_model.fingerprint:
        raise SessionError(
            "was made with another base model",
            subject=where,
            fix=f"Omit --base, or give the same model: {shown(record.base_model.folder)}.",
        )
    try:
        lay_out(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise SessionError(
            f"its {shown(Path(str(error.filename)).name)} is not a folder", where=where, fix="Get a new copy."
        ) from error
    names: dict[str, str] = {}
    for old in {record.name, *called} - {name}:
        names |= _rename_exports(folder, old, name)
    exports = tuple(each.model_copy(update={"file": names.get(each.file, each.file)}) for each in record.exports)
    settled = record.model_copy(update={"name": name, "base_model": base or record.base_model, "exports": exports})
    if not complete(folder / "checkpoints"):
        nothing = {"inherited": (), "runs": (), "extended": (), "revised": ()}
        settled = settled.model_copy(update={"lineage": new_lineage(), **nothing})
    if settled != record:
        write_record(folder, settled, keep=False)


def _rename_exports(folder: Path, old: str, new: str) -> dict[str, str]:
    """Rename the exports of an earlier name; return the new names by the old ones."""
    names = {}
    for path in list(folder.iterdir()):
        rest = path.name.removeprefix(old)
        target = folder / f"{new}{rest}"
        own = rest != path.name and rest.startswith((".", "_step_", "_lora")) and rest.endswith(EXPORTS)
        if own and not target.exists():
            path.rename(target)
            names[path.name] = target.name
    return names
