"""Where a session's training stands, and which weights are its result so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastdb.sessions.checkpoints import Checkpoint, complete, newest
from fastdb.sessions.session import Session

STAGES = ("text_encoder", "unet")
"""The stages in their order; each is named after the part it trains."""


@dataclass(frozen=True)
class Standing:
    """The newest good checkpoint of each stage that has one, and a line for each that was passed over."""

    checkpoints: dict[str, Checkpoint]
    passed_over: tuple[str, ...]

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint training goes on from: the newest one of the latest stage."""
        return next((self.checkpoints[stage] for stage in reversed(STAGES) if stage in self.checkpoints), None)

    def done(self, stage: str) -> int:
        """The steps done in a stage."""
        return self.checkpoints[stage].step if stage in self.checkpoints else 0

    @property
    def weights(self) -> dict[str, Path]:
        """The file that holds each trained part, by the part's name."""
        return {stage: checkpoint.path / f"{stage}.safetensors" for stage, checkpoint in self.checkpoints.items()}


def steps_of(session: Session, stage: str) -> int:
    """How many steps a stage of this session has in all."""
    config = session.config
    return config.text_encoder.steps if stage == "text_encoder" else config.unet.steps


def standing(session: Session) -> Standing:
    """Read a session's checkpoints, every byte of those that count.

    A later stage counts only on top of a whole earlier one: when the text encoder's last checkpoint is
    damaged, that stage has to go on first.
    """
    good: dict[str, Checkpoint] = {}
    said: list[str] = []
    for stage in STAGES:
        checkpoint, passed_over = newest(session.checkpoints, stage)
        said += passed_over
        if checkpoint is not None:
            good[stage] = checkpoint
        if steps_of(session, stage) > (checkpoint.step if checkpoint else 0):
            break
    return Standing(good, tuple(said))


def progress_of(session: Session) -> dict[str, int]:
    """The steps done in each stage, by the names of its checkpoints alone: quick, and not verified."""
    return {
        stage: max((checkpoint.step for checkpoint in complete(session.checkpoints, stage)), default=0)
        for stage in STAGES
    }
