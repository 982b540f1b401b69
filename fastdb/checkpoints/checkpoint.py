"""Training checkpoints as folders that appear complete and are verified when read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.checkpoints.claims import claim
from fastdb.errors import CheckpointError
from fastdb.reporting import Note
from fastdb.storage.atomic_write import explained, write_json
from fastdb.storage.delete import remove
from fastdb.storage.drive_duplicates import first_name
from fastdb.storage.manifest import faults, hashes_in, write_manifest
from fastdb.storage.safe_names import shown
from fastdb.storage.set_aside import ASIDE, move_aside
from fastdb.storage.staged_folder import staged_folder

STATE = "state.json"
FORMAT = 2
"""Version of the state. Version 1 has no `format` and no lineage."""
FINITE = "finite"
"""Key of the state: all numbers were finite when the checkpoint was saved. Earlier versions did not look."""
README = "README.txt"

RAW = ".safetensors"
PACKED = ".packed"
"""Suffixes of raw and of compressed tensor files."""
AVERAGE = "_ema"
"""Follows a part's name in the name of the file with its running average."""

_NAME = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d{6,})")
UNFINISHED = ".unfinished-"
"""Beginning of the names of folders that are being written or deleted."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder; `step` counts the optimizer steps done in `stage`."""

    path: Path
    stage: str
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """The training state beside the tensors.

        Raises:
            CheckpointError: the file cannot be read; later, when a missing key is looked up.
        """
        try:
            return _State(self.path, json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"its {STATE} cannot be read ({error})", where=self.path, fix="Run the same command again."
            ) from error


class _State(dict[str, Any]):
    """A checkpoint's state, whose missing keys raise a `CheckpointError`."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(
            f"its {STATE} has no {name}",
            where=self._path,
            fix="Another program wrote it; move it out of the session's checkpoints.",
        )


Fault = Callable[[Checkpoint], str]
"""Returns why a checkpoint cannot be used, or an empty string."""


def save(
    folder: Path, stage: str, step: int, state: dict[str, Any], write: Callable[[Path], dict[str, str]]
) -> tuple[Checkpoint, list[Note]]:
    """Write a checkpoint into `folder`, where it appears complete or not at all.

    Args:
        write: fills a hidden folder and returns the SHA-256 of each file it wrote. The files are read back and hashed
            into the manifest before the folder gets its name.

    Returns:
        The checkpoint, and a note if an older checkpoint of the same step was set aside.

    Raises:
        StorageError: the disk is full, read-only, failing or gone; earlier checkpoints are unchanged.
    """
    final = folder / f"{stage}-{step:06d}"
    hidden = folder / f"{UNFINISHED}{final.name}"
    notes: list[Note] = []
    with explained(final):
        folder.mkdir(exist_ok=True)
    with staged_folder(final, hidden):
        meant = write(hidden)
        write_json(hidden / STATE, state)
        write_manifest(hidden, meant)
        if final.exists() and (aside := move_aside(folder, [final])):
            reason = "a new checkpoint of the same step replaced it"
            notes.append(Note("checkpoint set aside", f"{aside.name}/{final.name}", reason))
    return Checkpoint(final, stage, step), notes


Lineages = str | Collection[str]
"""The lineage of a session, or it and those that the session inherited; any if empty."""


def complete(
    folders: Path | Sequence[Path],
    stage: str | None = None,
    *,
    lineage: Lineages | None = None,
    until: int | None = None,
) -> list[Checkpoint]:
    """List the checkpoints in some folders by their names, unverified.

    Args:
        folders: of several checkpoints of the same step, the copy in the first folder is listed last.
        stage: list only checkpoints of this stage.
        lineage: list only checkpoints from which training of these lineages can resume.
        until: list only checkpoints up to this step.

    Returns:
        The checkpoints, sorted by stage and step.

    Raises:
        StorageError: the disk does not answer, which is different from an empty folder.
    """
    checkpoints = []
    for folder in reversed((folders,) if isinstance(folders, Path) else folders):
        with explained(folder):
            # Newer Pythons' Path.is_dir returns False where the disk does not answer; these calls raise.
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name and entry.is_dir() and (stage is None or name["stage"] == stage):
                    checkpoints.append(Checkpoint(folder / entry.name, name["stage"], int(name["step"])))
    return [
        checkpoint
        for checkpoint in sorted(checkpoints, key=lambda checkpoint: (checkpoint.stage, checkpoint.step))
        if until is None or checkpoint.step <= until
        if lineage is None or not _foreign(checkpoint, lineage)
    ]


def fault_in(checkpoint: Checkpoint, lineage: Lineages = "", *, quick: bool = False) -> str:
    """Return why training of `lineage` cannot resume from a checkpoint, or an empty string.

    Args:
        lineage: those of the session; any lineage is accepted if it is empty.
        quick: compare sizes only; otherwise every byte is read and hashed.

    Raises:
        StorageError: the disk is gone, which proves nothing about its files.
    """
    if reasons := faults(checkpoint.path, quick=quick):
        return reasons[0]
    files = hashes_in(checkpoint.path).keys()
    for needed in ((STATE,), (f"{checkpoint.stage}{RAW}", f"{checkpoint.stage}{PACKED}")):
        if files.isdisjoint(needed):
            return f"its manifest does not name {needed[0]}"
    try:
        state = checkpoint.state
    except CheckpointError as error:
        return error.what
    if reason := _foreign(checkpoint, lineage):
        return reason
    stage, step = state.get("stage", checkpoint.stage), state.get("step", checkpoint.step)
    if (stage, step) != (checkpoint.stage, checkpoint.step):
        return (
            f"it contains the state of {str(stage)[:40]!a} step {str(step)[:20]}: it was renamed or copied from "
            "elsewhere"
        )
    return ""


def _foreign(checkpoint: Checkpoint, lineage: Lineages) -> str:
    """Return why a checkpoint, even if it is undamaged, does not belong to `lineage`, or an empty string.

    An unknown lineage, as in records of earlier versions, is accepted; so is an unreadable state, whose fault the
    manifest shows.
    """
    try:
        state = checkpoint.state
    except CheckpointError:
        return ""
    version, other = state.get("format", 1), state.get("lineage")
    if type(version) is not int or not 1 <= version <= FORMAT:
        return f"its state has format {ascii(version)[:40]}; this version reads {FORMAT}"
    if lineage and other and other not in ({lineage} if isinstance(lineage, str) else lineage):
        return "it belongs to another session or to an earlier start of this one"
    return ""


def newest(
    folders: Path | Sequence[Path], stage: str, lineage: Lineages = "", unusable: Fault | None = None
) -> tuple[Checkpoint | None, list[Note]]:
    """Return the newest valid checkpoint of a stage, and a note for each newer checkpoint that was skipped.

    Args:
        unusable: a further check of valid checkpoints.

    Raises:
        StorageError: a folder cannot be listed.
    """
    skipped: list[Note] = []
    for checkpoint in reversed(complete(folders, stage)):
        if claim(checkpoint.path):
            reason = fault_in(checkpoint, lineage) or (unusable(checkpoint) if unusable else "")
            if not reason:
                return checkpoint, skipped
            if claim(checkpoint.path):
                skipped.append(Note("checkpoint skipped", checkpoint.path.name, reason))
                continue
        # Deleted meanwhile, because there are newer ones by now.
        return newest(folders, stage, lineage, unusable)
    return None, skipped


def tensors_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """Return the file, raw or compressed, that the raw form calls `name`; None if the manifest names neither.

    Raises:
        StorageError: the manifest cannot be read.
    """
    listed = hashes_in(checkpoint.path)
    forms = (name, name.removesuffix(RAW) + PACKED)
    return next((checkpoint.path / form for form in forms if form in listed), None)


def strays(folder: Path) -> list[Note]:
    """Note every entry of a checkpoint folder that is no checkpoint; nothing reads or moves it.

    Raises:
        StorageError: the folder cannot be listed.
    """
    with explained(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
        return [
            Note("file skipped", shown(entry.name), _stray_reason(entry))
            for entry in entries
            if not entry.name.startswith((".", ASIDE)) and entry.name != README
            if not (_NAME.fullmatch(entry.name) and entry.is_dir())
        ]


def _stray_reason(entry: os.DirEntry[str]) -> str:
    first = first_name(entry.name)
    if first and (_NAME.fullmatch(first) or first == README):
        return f"Google Drive shows it as a second {first}"
    return "it has a checkpoint's name but is not a folder" if _NAME.fullmatch(entry.name) else "not a checkpoint"


def clear_unfinished(folder: Path) -> None:
    """Delete the unfinished checkpoints of a killed process; only the process that writes `folder` may call this."""
    with explained(folder):
        for path in folder.glob(f"{UNFINISHED}*") if folder.is_dir() else ():
            remove(path)
