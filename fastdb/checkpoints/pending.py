"""What of a session's checkpoints lies on this machine alone, and what of it has to be published.

Training saves on this machine's own disk and never waits for Google Drive. What is *published* lies in the session's
folder, in a folder of its own that was read back and hashed. Published is what any machine may go on from: the newest,
the last of each stage, and those that are kept for good.
"""

from __future__ import annotations

from fastdb.checkpoints.checkpoint import STATE, Checkpoint, complete, own, take_away
from fastdb.checkpoints.progress import STAGES
from fastdb.checkpoints.retention import KEEP, Retention, retention
from fastdb.errors import CheckpointError, StorageError
from fastdb.sessions.session import Session
from fastdb.storage.manifest import hashes_in

MADE_OF = "made_of"
"""Where a published checkpoint's state keeps the SHA-256 of each file of the local one it was made of."""


def pending(session: Session) -> list[Checkpoint]:
    """The checkpoints on this machine that have yet to be published, in the order in which they must be.

    Of those of one stage that are neither its last nor to be kept only the newest counts, and none once a later one is
    published.

    Raises:
        StorageError: a disk does not answer.
    """
    lineage = session.record.lineage
    there = _in_order([one for one in complete(session.local_checkpoints) if not one.stranger(lineage)])
    if not there:
        return []
    out = [one for one in complete(session.checkpoints) if not one.stranger(lineage)]
    by_name = {one.path.name: one for one in out}
    missing = [one for one in there if one.path.name not in by_name or not is_same(one, by_name[one.path.name])]
    newest = there[-1]
    keep = retention(session)
    return [one for one in missing if _stays(keep, one) or (one == newest and not _is_behind(one, out))]


def _in_order(found: list[Checkpoint]) -> list[Checkpoint]:
    return sorted(found, key=_place)


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return (STAGES.index(checkpoint.stage) if checkpoint.stage in STAGES else -1, checkpoint.step)


def _is_behind(one: Checkpoint, out: list[Checkpoint]) -> bool:
    return any(_place(other) > _place(one) for other in out)


def is_same(local: Checkpoint, published: Checkpoint) -> bool:
    """Whether `published` says that it was made of `local`; no tensor is read."""
    try:
        return bool(published.state.get(MADE_OF) == raw_hashes(local))
    except (CheckpointError, StorageError):
        return False


def raw_hashes(local: Checkpoint) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint on this machine, by its manifest.

    Raises:
        StorageError: that cannot be read.
    """
    return {name: digest for name, digest in hashes_in(local.path).items() if name != STATE}


def _stays(keep: Retention, checkpoint: Checkpoint) -> bool:
    """Whether it is the last of its stage, or one to be kept for good."""
    if keep.stays(checkpoint.stage, checkpoint.step):
        return True
    try:
        return checkpoint.step == checkpoint.state["steps"]
    except (CheckpointError, KeyError):
        return False


def spare_here(session: Session, keep: int = KEEP) -> list[str]:
    """Remove the checkpoints on this machine that have `keep` newer ones of their stage and need not be published.

    Returns a line for each that could not be removed, or one why they were not looked through.
    """
    try:
        waiting = {one.path for one in pending(session)}
        going = [one for one in complete(session.local_checkpoints) if one.stranger(session.record.lineage)]
        for stage in STAGES:
            there = own(session.local_checkpoints, stage, session.record.lineage)
            going += [one for one in there[:-keep] if one.path not in waiting]
    except StorageError:
        # The session's disk is away: nothing tells what is published, so all stays until the next time.
        return []
    said = []
    for one in going:
        try:
            take_away(one)
        except OSError as error:
            said.append(f"checkpoint {one.path.name} on this machine could not be removed: {error.strerror}")
    return said
