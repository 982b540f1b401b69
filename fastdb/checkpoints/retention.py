"""Retention and deletion of old checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.checkpoints.checkpoint import UNFINISHED, Checkpoint, Lineages, complete, fault_in
from fastdb.checkpoints.claims import unclaimed
from fastdb.errors import StorageError
from fastdb.reporting import Note
from fastdb.storage.delete import remove
from fastdb.storage.drive_uploads import waits_for_upload

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

KEEP = 2
"""Number of newer checkpoints of its stage that must verify on a fresh read before an old checkpoint is deleted."""
PICKED = "evaluation.json"
MANY = 3
"""Number of checkpoints that may wait for their upload before a note reports it."""


@dataclass(frozen=True)
class Retention:
    """Rules for checkpoints that are not deleted unasked.

    Attributes:
        last: number of newest valid checkpoints per stage, at least `KEEP`.
        every: keep checkpoints at multiples of this step; 0 keeps none.
        best: the step of the UNet stage that the last evaluation recommends.
        undecided: the steps between which it could not decide.
    """

    last: int = KEEP
    every: int = 0
    best: int | None = None
    undecided: tuple[int, ...] = ()

    def keeps(self, stage: str, step: int) -> bool:
        """Whether a checkpoint is kept no matter how many newer checkpoints exist."""
        return bool(self.every and step % self.every == 0) or (stage == "unet" and step in (self.best, *self.undecided))


USUAL = Retention()


def retention(session: Session) -> Retention:
    """Return the retention rules of a session from its settings and its evaluation."""
    settings = session.config.checkpoints
    try:
        picked = json.loads((session.path / "evaluation" / PICKED).read_text(encoding="utf-8"))["picked"]
        step, others = picked["step"], picked.get("undecided", ())
        undecided = tuple(other for other in others if type(other) is int)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        step, undecided = None, ()
    return Retention(settings.keep_last, settings.keep_every, step if type(step) is int else None, undecided)


def spare(folder: Path, stage: str, keep: Retention = USUAL, lineage: Lineages = "") -> list[Checkpoint]:
    """List the valid checkpoints of a stage that may be deleted, newest first.

    Each has `keep.last` newer checkpoints that verify on a fresh read and, on Google Drive, are uploaded: the others
    would be lost with the machine. Damaged checkpoints, those of another lineage and those that `keep` keeps are not
    listed.

    Raises:
        StorageError, OSError: the disk does not answer.
    """
    return _superseded(folder, stage, keep, lineage)[0]


def prune(folder: Path, stage: str, keep: Retention = USUAL, lineage: Lineages = "") -> list[Note]:
    """Delete the checkpoints that `spare` lists and that no process of this machine reads.

    Nothing is raised: the checkpoint that was just saved is complete, and the next call deletes the rest.

    Returns:
        Notes about failures, and about many checkpoints waiting for their upload.
    """
    try:
        older, waiting = _superseded(folder, stage, keep, lineage)
    except (StorageError, OSError) as error:
        reason = error.what if isinstance(error, StorageError) else error.strerror
        return [Note("older checkpoints unread", reason=reason or "")]
    return ([Note("uploads pending", str(waiting))] if waiting > MANY else []) + delete_unclaimed(older)


def delete_unclaimed(checkpoints: Iterable[Checkpoint]) -> list[Note]:
    """Delete checkpoints, except those that a process of this machine reads; a later call deletes these.

    Returns:
        A note for each checkpoint that could not be deleted.
    """
    notes = []
    for checkpoint in checkpoints:
        try:
            delete_checkpoint(checkpoint.path)
        except (BlockingIOError, FileNotFoundError):
            continue  # Read by a process, or deleted by another one.
        except OSError as error:
            notes.append(Note("checkpoint not removed", checkpoint.path.name, error.strerror or str(error)))
    return notes


def _superseded(folder: Path, stage: str, keep: Retention, lineage: Lineages) -> tuple[list[Checkpoint], int]:
    """Return the valid checkpoints below enough newer uploaded ones, newest first, and how many wait for upload."""
    settled, waiting = 0, 0
    older = []
    for checkpoint in reversed(complete(folder, stage)):
        if (settled == keep.last and keep.keeps(stage, checkpoint.step)) or fault_in(checkpoint, lineage):
            continue
        if settled == keep.last:
            older.append(checkpoint)
        elif waits_for_upload(checkpoint.path):
            waiting += 1
        else:
            settled += 1
    return older, waiting


def delete_checkpoint(path: Path) -> int:
    """Delete a checkpoint that is `spare`, or whose owner agreed; return its size in bytes.

    Raises:
        BlockingIOError: a process of this machine reads it.
        OSError: it cannot be deleted.
    """
    # Hidden first: a killed deletion leaves an unfinished folder, which `clear_unfinished` deletes.
    hidden = path.with_name(f"{UNFINISHED}going-{path.name}")
    with unclaimed(path):
        remove(hidden)
        path.rename(hidden)
    return remove(hidden)
