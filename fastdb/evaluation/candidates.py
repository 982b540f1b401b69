"""What is evaluated: the untrained base, the UNet stage's checkpoints that verify, or an exported file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fastdb.checkpoints.compressed_checkpoint import raw_files, raw_sha256
from fastdb.checkpoints.progress import Standing, standings
from fastdb.console import sentence
from fastdb.inference.engine import Engine
from fastdb.inference.source import open_source
from fastdb.models.diffusers_folder import BaseModel
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained
from fastdb.storage.manifest import sha256
from fastdb.training.process import find

STAGE = "unet"


@dataclass(frozen=True)
class Candidate:
    """Weights to evaluate.

    Attributes:
        step: of the UNet stage; None where an exported file does not tell.
        key: changes when a weight does.
        load: gives the engine that draws with them.
    """

    label: str
    step: int | None
    key: str
    load: Callable[[], Engine]


def untrained(session: Session, base: BaseModel) -> Candidate:
    """The base model as it was: step 0, the reference."""
    fingerprint = session.record.base_model.fingerprint
    return Candidate("step 0", 0, fingerprint, lambda: Engine.from_base(base))


def checkpoints_of(
    session: Session, base: BaseModel, wanted: Sequence[int] | None
) -> tuple[list[Candidate], list[str]]:
    """The checkpoints of the UNet stage whose every byte verifies, with the text encoder that the session trained.

    Args:
        wanted: their steps, or None for all.

    Returns the candidates by step, and a line for each checkpoint that was passed over.

    Raises:
        TrainingError: there is none, or the text encoder they were trained with is gone or damaged.
        ConfigError: one that was asked for is not there or does not verify.
    """
    stands, notes = standings(session, wanted)
    return [_checkpoint(session, base, one) for one in stands], [sentence(note) for note in notes]


def file_of(session: Session, base: BaseModel, file: Path) -> Candidate:
    """An exported file of the session's model.

    Raises:
        ModelError: there is no such file.
        StorageError: it cannot be read.
    """
    file = file.expanduser().absolute()
    source = open_source(str(file), base.folder, None)
    with explained(file):
        key = sha256(file)
    return Candidate(file.name, _step_told(file), key, source.load)


def busy(session: Session) -> bool:
    """Whether the session is being trained on this machine."""
    return find(session) is not None


def _checkpoint(session: Session, base: BaseModel, stands: Standing) -> Candidate:
    keys = [session.record.base_model.fingerprint]
    for path in stands.weights.values():
        keys.append(raw_sha256(path))
    weights = stands.weights
    return Candidate(
        f"step {stands.done(STAGE)}",
        stands.done(STAGE),
        " ".join(keys),
        lambda: Engine.from_base(base, trained=raw_files(weights, base.folder)),
    )


def _step_told(file: Path) -> int | None:
    """The UNet's step that an export of ours tells in its header, `text_encoder 350/350, unet 500/1500`."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, framework="pt") as weights:
            told = (weights.metadata() or {}).get("fastdb.trained", "")
    except (SafetensorError, OSError):
        return None  # What is wrong with the file is said when it is loaded.
    for part in told.split(", "):
        stage, _, steps = part.partition(" ")
        if stage == STAGE and steps.split("/")[0].isdecimal():
            return int(steps.split("/")[0])
    return None
