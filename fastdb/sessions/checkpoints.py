"""Training checkpoints: folders that appear whole, are verified when read, and go only under two newer ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.errors import CheckpointError, StorageError
from fastdb.storage.durable import explained, flush, write_json
from fastdb.storage.manifest import faults, write_manifest
from fastdb.storage.removal import remove
from fastdb.storage.uploads import waits_for_upload

STATE = "state.json"
KEEP = 2
"""An old checkpoint goes only when this many newer ones of its stage verify on a fresh read."""

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
            state: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"its state cannot be read ({error})", where=self.path, fix="Run the same command again."
            ) from error
        return state


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
                said.append(_set_aside(final, "another of the same step took its place"))
            hidden.rename(final)
            flush(folder)
        except BaseException:
            with suppress(OSError):
                remove(hidden)
            raise
    return Checkpoint(final, stage, step), said


def complete(folder: Path, stage: str | None = None) -> list[Checkpoint]:
    """The checkpoints below `folder` by name, oldest first within a stage; not verified.

    Raises:
        StorageError: the disk does not answer. That is not to be taken for an empty folder.
    """
    found = []
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


def newest(folder: Path, stage: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a stage whose every byte verifies, and a line for each newer one passed over.

    Raises:
        StorageError: the folder cannot be listed.
    """
    said: list[str] = []
    for checkpoint in reversed(complete(folder, stage)):
        wrong = faults(checkpoint.path)
        if not wrong:
            return checkpoint, said
        said.append(f"checkpoint {checkpoint.path.name} is passed over: {wrong[0]}")
    return None, said


def spare(folder: Path, stage: str, keep_every: int = 0) -> list[Checkpoint]:
    """The checkpoints of a stage that have `KEEP` newer ones which verify on a fresh read, newest first.

    On Google Drive only those newer ones count that were uploaded: the others go with the machine. Damaged ones are not
    among them, nor are those at multiples of `keep_every` steps, where that is not 0.

    Raises:
        StorageError, OSError: the disk does not answer.
    """
    return _superseded(folder, stage, keep_every)[0]


def prune(folder: Path, stage: str, keep_every: int = 0) -> list[str]:
    """Remove the checkpoints of a stage that are to spare.

    Returns a line for each that could not be removed, and one where many wait. Nothing is raised: what was just saved
    stands, and the next time will do.
    """
    said: list[str] = []
    try:
        older, waiting = _superseded(folder, stage, keep_every)
    except (StorageError, OSError) as error:
        what = error.what if isinstance(error, StorageError) else error.strerror
        return [f"older checkpoints could not be looked through: {what}"]
    if waiting > MANY:
        said.append(f"{waiting} checkpoints wait for their upload to Google Drive, so older ones stay for now")
    for checkpoint in older:
        try:
            take_away(checkpoint)
        except OSError as error:
            said.append(f"checkpoint {checkpoint.path.name} could not be removed: {error.strerror}")
    return said


def _superseded(folder: Path, stage: str, keep_every: int) -> tuple[list[Checkpoint], int]:
    """The good checkpoints of a stage under `KEEP` newer good ones that no longer wait, newest first; how many wait."""
    settled, waiting = 0, 0
    older = []
    for checkpoint in reversed(complete(folder, stage)):
        if (settled == KEEP and keep_every and checkpoint.step % keep_every == 0) or faults(checkpoint.path):
            continue
        if settled == KEEP:
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
    every = complete(folder)
    if not every:
        return None
    with explained(folder):
        aside = _free(folder)
        aside.mkdir()
        # The latest stage first: cut off midway, what is left is an earlier state and not a mixed one.
        for checkpoint in reversed(every):
            checkpoint.path.rename(aside / checkpoint.path.name)
    return aside


def _set_aside(path: Path, why: str) -> str:
    aside = _free(path.parent)
    aside.mkdir()
    path.rename(aside / path.name)
    return f"{path.name} was moved to {aside.name}: {why}"


def _free(folder: Path) -> Path:
    number = 1
    while (folder / f"{ASIDE}{number}").exists():
        number += 1
    return folder / f"{ASIDE}{number}"
