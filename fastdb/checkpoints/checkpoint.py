"""Training checkpoints: folders that appear whole, are verified when read, and go only under two newer ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.checkpoints.retention import Retention
from fastdb.errors import CheckpointError, StorageError
from fastdb.storage.atomic_write import explained, flush, write_json
from fastdb.storage.delete import remove
from fastdb.storage.drive_duplicates import first_name
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.storage.manifest import faults, named, write_manifest
from fastdb.storage.safe_names import shown

STATE = "state.json"
FORMAT = 2
"""Of the state. 1, which did not say so, had no lineage."""
README = "README.txt"
USUAL = Retention()
NOT_LOOKED_THROUGH = "older checkpoints could not be looked through"
MANY = 3
"""When more wait for their upload, it is said."""

_NAME = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d{6,})")
UNFINISHED = ".unfinished-"
"""Beginning of the name of what is being written, or removed."""
ASIDE = "set-aside-"
"""Beginning of the name of a folder with checkpoints that training does not go on from."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `stage` and the number of optimizer `step`s done in it."""

    path: Path
    stage: str
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What training wrote beside the tensors.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return State(self.path, json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"its state cannot be read ({error})", where=self.path, fix="Run the same command again."
            ) from error

    def stranger(self, lineage: str) -> str:
        """Why training of `lineage` cannot go on from it though it may be whole, as a clause; empty where it can.

        A lineage that is not known, as `session.yaml` or the state of earlier versions have none, is let pass; so is a
        state that cannot be read, which the manifest knows more about.
        """
        try:
            state = self.state
        except CheckpointError:
            return ""
        number, theirs = state.get("format", 1), state.get("lineage")
        if type(number) is not int or not 1 <= number <= FORMAT:
            return f"its state has format {ascii(number)[:40]}; this version knows {FORMAT}"
        if lineage and theirs and theirs != lineage:
            return "it belongs to another session or to an earlier beginning of this one"
        return ""


class State(dict[str, Any]):
    """What a checkpoint says of itself; whoever asks for more than it says gets a line, and no traceback."""

    def __init__(self, path: Path, said: dict[str, Any]) -> None:
        super().__init__(said)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(
            f"its {STATE} does not say its {name}",
            where=self._path,
            fix="It was made by another program; move it out of the session's checkpoints.",
        )


def save(
    folder: Path, stage: str, step: int, state: dict[str, Any], write: Callable[[Path], dict[str, str]]
) -> tuple[Checkpoint, list[str]]:
    """Publish a checkpoint below `folder`: `write` fills a hidden folder and tells the SHA-256 of what it
    wrote, its files are read back and hashed into the manifest, and the folder gets its name last.

    Returns the checkpoint, and a line for an older one of the same step that was set aside.

    Raises:
        StorageError: the disk is full, read-only, failing or gone; what was there before is untouched.
    """
    final = folder / f"{stage}-{step:06d}"
    hidden = folder / f"{UNFINISHED}{final.name}"
    said: list[str] = []
    with explained(final):
        folder.mkdir(exist_ok=True)
        remove(hidden)
        hidden.mkdir()
        try:
            meant = write(hidden)
            write_json(hidden / STATE, state)
            write_manifest(hidden, meant)
            if final.exists():
                said.append(set_aside(final, "another of the same step took its place"))
            hidden.rename(final)
            flush(folder)
        except BaseException:
            with suppress(OSError):
                remove(hidden)
            raise
    return Checkpoint(final, stage, step), said


def complete(folders: Path | Sequence[Path], stage: str | None = None) -> list[Checkpoint]:
    """The checkpoints below some folders by name, oldest first within a stage; not verified.

    Of several of one step, that of the folder which was named first comes last.

    Raises:
        StorageError: the disk does not answer. That is not to be taken for an empty folder.
    """
    found = []
    for folder in reversed((folders,) if isinstance(folders, Path) else folders):
        with explained(folder):
            # Path.is_dir says no, in newer Pythons, where the disk does not answer; these raise.
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name and entry.is_dir() and (stage is None or name["stage"] == stage):
                    found.append(Checkpoint(folder / entry.name, name["stage"], int(name["step"])))
    return sorted(found, key=lambda checkpoint: (checkpoint.stage, checkpoint.step))


def own(folders: Path | Sequence[Path], stage: str, lineage: str, until: int | None = None) -> list[Checkpoint]:
    """The checkpoints of a stage that training of `lineage` may go on from, oldest first, those after step `until`
    left out; not verified.

    Raises:
        StorageError: the disk does not answer.
    """
    there = [one for one in complete(folders, stage) if until is None or one.step <= until]
    return [one for one in there if not one.stranger(lineage)]


def wrong_with(
    checkpoint: Checkpoint, lineage: str = "", *, quick: bool = False, needs: Sequence[Sequence[str]] = ()
) -> str:
    """Why training of `lineage` does not go on from a checkpoint, as a clause; empty where nothing is wrong with it.

    Args:
        lineage: of the session; empty where any will do.
        quick: look at sizes only; else every byte is read and hashed.
        needs: of each group of files its manifest has to name one.

    Raises:
        StorageError: the disk is gone. That says nothing of what lies on it.
    """
    if wrong := faults(checkpoint.path, quick=quick):
        return wrong[0]
    there = named(checkpoint.path)
    if lacking := [group[0] for group in ((STATE,), *needs) if not there.intersection(group)]:
        return f"its manifest does not name {lacking[0]}"
    try:
        state = checkpoint.state
    except CheckpointError as error:
        return error.what
    if foreign := checkpoint.stranger(lineage):
        return foreign
    stage, step = state.get("stage", checkpoint.stage), state.get("step", checkpoint.step)
    if (stage, step) != (checkpoint.stage, checkpoint.step):
        return (
            f"it holds the state of {str(stage)[:40]!a} step {str(step)[:20]}: it was renamed, or copied from elsewhere"
        )
    return ""


def newest(
    folders: Path | Sequence[Path], stage: str, lineage: str = "", needs: Sequence[Sequence[str]] = ()
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a stage with which nothing is wrong, and a line for each newer one passed over.

    Raises:
        StorageError: the folder cannot be listed.
    """
    said: list[str] = []
    for checkpoint in reversed(complete(folders, stage)):
        wrong = wrong_with(checkpoint, lineage, needs=needs)
        if not wrong:
            return checkpoint, said
        said.append(passed_over(checkpoint, wrong))
    return None, said


def passed_over(checkpoint: Checkpoint, wrong: str) -> str:
    """The line for a checkpoint that is not gone on from."""
    return f"checkpoint {checkpoint.path.name} is passed over: {wrong}"


def oddments(folder: Path) -> list[str]:
    """A line for each thing among checkpoints that is none, and that nothing reads: it is left as it is.

    Raises:
        StorageError: the folder cannot be listed.
    """
    with explained(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
        return [
            f"{shown(entry.name)} is passed over: {_strange(entry)}"
            for entry in entries
            if not entry.name.startswith((".", ASIDE)) and entry.name != README
            if not (_NAME.fullmatch(entry.name) and entry.is_dir())
        ]


def _strange(entry: os.DirEntry[str]) -> str:
    first = first_name(entry.name)
    if first and (_NAME.fullmatch(first) or first == README):
        return f"a second {first}, as Google Drive shows what was made twice"
    return "it has a checkpoint's name and is no folder" if _NAME.fullmatch(entry.name) else "no checkpoint"


def spare(folder: Path, stage: str, keep: Retention = USUAL, lineage: str = "") -> list[Checkpoint]:
    """The checkpoints of a stage that have `keep.last` newer ones which verify on a fresh read, newest first.

    On Google Drive only those newer ones count that were uploaded: the others go with the machine. Damaged ones are not
    among them, nor are those of another lineage, nor those that `keep` says stay.

    Raises:
        StorageError, OSError: the disk does not answer.
    """
    return _superseded(folder, stage, keep, lineage)[0]


def prune(folder: Path, stage: str, keep: Retention = USUAL, lineage: str = "") -> list[str]:
    """Remove the checkpoints of a stage that are to spare.

    Returns a line for each that could not be removed, and one where many wait. Nothing is raised: what was just saved
    stands, and the next time will do.
    """
    said: list[str] = []
    try:
        older, waiting = _superseded(folder, stage, keep, lineage)
    except (StorageError, OSError) as error:
        what = error.what if isinstance(error, StorageError) else error.strerror
        return [f"{NOT_LOOKED_THROUGH}: {what}"]
    if waiting > MANY:
        said.append(f"{waiting} checkpoints wait for their upload to Google Drive, so older ones stay for now")
    for checkpoint in older:
        try:
            take_away(checkpoint)
        except OSError as error:
            said.append(f"checkpoint {checkpoint.path.name} could not be removed: {error.strerror}")
    return said


def _superseded(folder: Path, stage: str, keep: Retention, lineage: str) -> tuple[list[Checkpoint], int]:
    """The good checkpoints of a stage under enough newer good ones that no longer wait, newest first; how many wait."""
    settled, waiting = 0, 0
    older = []
    for checkpoint in reversed(complete(folder, stage)):
        if (settled == keep.last and keep.stays(stage, checkpoint.step)) or wrong_with(checkpoint, lineage):
            continue
        if settled == keep.last:
            older.append(checkpoint)
        elif waits_for_upload(checkpoint.path):
            waiting += 1
        else:
            settled += 1
    return older, waiting


def take_away(checkpoint: Checkpoint) -> int:
    """Remove a checkpoint; returns its bytes. Only for one that is `spare`, or for which its owner was asked.

    Raises:
        OSError: it cannot be removed.
    """
    # Out of sight first: killed halfway, the rest is cleared away like any unfinished one.
    going = checkpoint.path.with_name(f"{UNFINISHED}going-{checkpoint.path.name}")
    remove(going)
    checkpoint.path.rename(going)
    return remove(going)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed trainer was still writing. Only the one process that trains may call this."""
    with explained(folder):
        for path in folder.glob(f"{UNFINISHED}*") if folder.is_dir() else ():
            remove(path)


def set_all_aside(folder: Path) -> Path | None:
    """Move every checkpoint into a new `set-aside-N` folder, so that training starts anew and nothing is lost."""
    return _move_aside(folder, complete(folder))


def set_newer_aside(folders: Sequence[Path], stage: str, step: int) -> list[Path]:
    """Move the checkpoints of a stage after `step` into a new `set-aside-N` folder where they lie, so that training
    goes on from `step` and nothing is lost; returns these folders.
    """
    newer = {folder: [one for one in complete(folder, stage) if one.step > step] for folder in folders}
    return [aside for folder, these in newer.items() if (aside := _move_aside(folder, these))]


def _move_aside(folder: Path, these: Sequence[Checkpoint]) -> Path | None:
    if not these:
        return None
    with explained(folder):
        aside = _free(folder)
        aside.mkdir()
        # The latest first: cut off midway, what is left is an earlier state and not a mixed one.
        for checkpoint in reversed(these):
            checkpoint.path.rename(aside / checkpoint.path.name)
    return aside


def set_aside(path: Path, why: str) -> str:
    """Move a checkpoint into a new `set-aside-N` folder beside it; gives the line that says so.

    Raises:
        OSError: the disk is read-only, failing or gone.
    """
    aside = _free(path.parent)
    aside.mkdir()
    path.rename(aside / path.name)
    return f"{path.name} was moved to {aside.name}: {why}"


def _free(folder: Path) -> Path:
    number = 1
    while (folder / f"{ASIDE}{number}").exists():
        number += 1
    return folder / f"{ASIDE}{number}"
