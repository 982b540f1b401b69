"""Training checkpoints: folders that appear whole, are verified when read, and go only under two newer ones."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.errors import CheckpointError, StorageError
from fastdb.storage.durable import explained, flush, write_json
from fastdb.storage.manifest import MANIFEST, faults, write_manifest
from fastdb.storage.uploads import waits_for_upload

STATE = "state.json"
KEEP = 2
"""An old checkpoint goes only when this many newer ones of its stage verify on a fresh read."""

MANY = 3
"""When more wait for their upload, it is said."""

_NAME = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d{6,})")
_UNFINISHED = ".unfinished-"
_ASIDE = "set-aside-"


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
    hidden = folder / f"{_UNFINISHED}{final.name}"
    said: list[str] = []
    with explained(final):
        folder.mkdir(exist_ok=True)
        _remove(hidden)
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
            shutil.rmtree(hidden, ignore_errors=True)
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


def prune(folder: Path, stage: str, keep_every: int = 0) -> list[str]:
    """Remove checkpoints of a stage that have `KEEP` newer ones which verify on a fresh read; damaged ones stay.

    On Google Drive only those newer ones count that were uploaded: the others go with the machine. Checkpoints at
    multiples of `keep_every` steps stay too, where that is not 0.

    Returns a line for each that could not be removed, and one where many wait. Nothing is raised: what was just saved
    stands, and the next time will do.
    """
    said: list[str] = []
    try:
        older, waiting = _superseded(folder, stage)
    except (StorageError, OSError) as error:
        what = error.what if isinstance(error, StorageError) else error.strerror
        return [f"older checkpoints could not be looked through: {what}"]
    if waiting > MANY:
        said.append(f"{waiting} checkpoints wait for their upload to Google Drive, so older ones stay for now")
    for checkpoint in older:
        if keep_every and checkpoint.step % keep_every == 0:
            continue
        # Out of sight first: killed halfway, the rest is cleared away like any unfinished one.
        going = folder / f"{_UNFINISHED}going-{checkpoint.path.name}"
        try:
            _remove(going)
            checkpoint.path.rename(going)
            _remove(going)
        except OSError as error:
            said.append(f"checkpoint {checkpoint.path.name} could not be removed: {error.strerror}")
    return said


def _superseded(folder: Path, stage: str) -> tuple[list[Checkpoint], int]:
    """The good checkpoints of a stage under `KEEP` newer good ones that no longer wait, newest first; how many wait."""
    settled, waiting = 0, 0
    older = []
    for checkpoint in reversed(complete(folder, stage)):
        if faults(checkpoint.path):
            continue
        if settled == KEEP:
            older.append(checkpoint)
        elif waits_for_upload(checkpoint.path):
            waiting += 1
        else:
            settled += 1
    return older, waiting


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed trainer was still writing. Only the one process that trains may call this."""
    with explained(folder):
        for path in folder.glob(f"{_UNFINISHED}*") if folder.is_dir() else ():
            _remove(path)


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
    while (folder / f"{_ASIDE}{number}").exists():
        number += 1
    return folder / f"{_ASIDE}{number}"


def _remove(folder: Path) -> None:
    """Remove a folder; its manifest goes first, so that what is left of it is never taken for whole."""
    if not folder.exists():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
