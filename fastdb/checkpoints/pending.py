"""Checkpoints on this machine that have to be published, and those that may be deleted here.

Published are the newest checkpoint, the last of each stage, and those that the retention rules keep: milestones, and of
each stage the `checkpoints.keep_last` newest if these are more than the two that every session keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastdb.checkpoints.checkpoint import STATE, Checkpoint, complete
from fastdb.checkpoints.progress import STAGES, abandoned
from fastdb.checkpoints.retention import KEEP, Retention, delete_unclaimed, retention
from fastdb.errors import CheckpointError, StorageError
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.storage.manifest import hashes_in

MADE_OF = "made_of"
"""Key in a published checkpoint's state with the SHA-256 of each file of the local checkpoint it was made of."""


def pending(session: Session, *, needed: bool = False) -> list[Checkpoint]:
    """List the checkpoints on this machine that have to be published, sorted by stage and step.

    Of the checkpoints of a stage that are neither its last nor kept by the retention rules, only the newest is listed,
    and only if no later checkpoint is published. If the rules keep more than `KEEP` of the newest, these follow.

    Args:
        needed: without those that are kept only because they are among the newest.

    Raises:
        StorageError: a disk does not answer.
    """
    lineage = session.record.lineages
    local = [
        checkpoint
        for checkpoint in sorted(complete(session.local_checkpoints, lineage=lineage), key=_place)
        if not abandoned(session, checkpoint)
    ]
    if not local:
        return []
    published = {checkpoint.path.name: checkpoint for checkpoint in complete(session.checkpoints, lineage=lineage)}
    missing = [
        checkpoint
        for checkpoint in local
        if checkpoint.path.name not in published or not _is_same(checkpoint, published[checkpoint.path.name])
    ]
    newest, keep = local[-1], retention(session)
    behind = any(_place(checkpoint) > _place(newest) for checkpoint in published.values())
    recent = set() if needed else _recent(keep, [*local, *published.values()])
    return [
        checkpoint
        for checkpoint in missing
        if _is_kept(keep, checkpoint)
        or (checkpoint == newest and not behind)
        or (checkpoint.stage, checkpoint.step) in recent
    ]


def prune_local(session: Session, keep: int = KEEP, *, needed: bool = False) -> list[Note]:
    """Delete the checkpoints on this machine that have `keep` newer ones of their stage and need not be published.

    One that is being published, or read by another process, stays until a later call.

    Args:
        needed: see `pending`.

    Returns:
        A note for each checkpoint that could not be deleted.
    """
    try:
        waiting = {checkpoint.path for checkpoint in pending(session, needed=needed)}
        resumable = complete(session.local_checkpoints, lineage=session.record.lineages)
        going = [checkpoint for checkpoint in complete(session.local_checkpoints) if checkpoint not in resumable]
        for stage in STAGES:
            older = [checkpoint for checkpoint in resumable if checkpoint.stage == stage][:-keep]
            going += [checkpoint for checkpoint in older if checkpoint.path not in waiting]
    except StorageError:
        # The session's disk is away, so it is unknown what is published: delete nothing this time.
        return []
    return delete_unclaimed(going)


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return (STAGES.index(checkpoint.stage) if checkpoint.stage in STAGES else -1, checkpoint.step)


def _is_same(local: Checkpoint, published: Checkpoint) -> bool:
    """Whether the state of `published` names the files of `local`; no tensor is read."""
    try:
        return bool(published.state.get(MADE_OF) == raw_hashes(local))
    except (CheckpointError, StorageError):
        return False


def raw_hashes(local: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each raw file of a checkpoint on this machine, by its name."""
    return {name: digest for name, digest in hashes_in(local.path).items() if name != STATE}


def _is_kept(keep: Retention, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the last of its stage or kept by the retention rules."""
    if keep.keeps(checkpoint.stage, checkpoint.step):
        return True
    return is_last(checkpoint)


def _recent(keep: Retention, checkpoints: Sequence[Checkpoint]) -> set[tuple[str, int]]:
    """Return stage and step of the newest checkpoints that are kept beyond the `KEEP` that every session keeps."""
    if keep.last <= KEEP:
        return set()
    steps = {stage: sorted({each.step for each in checkpoints if each.stage == stage}) for stage in STAGES}
    return {(stage, step) for stage in STAGES for step in steps[stage][-keep.last :]}


def is_last(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the last of its stage, without which no later stage can resume."""
    try:
        return checkpoint.step == checkpoint.state["steps"]
    except CheckpointError:
        return False
