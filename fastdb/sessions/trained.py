"""Where a session's training stands, and which weights are its result so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdb.config import Config
from fastdb.errors import ConfigError, TrainingError
from fastdb.sessions.checkpoints import Checkpoint, complete, newest
from fastdb.sessions.session import Session
from fastdb.storage.manifest import faults

STAGES = ("text_encoder", "unet")
"""The stages in their order; each is named after the part it trains.

In the joint mode the text encoder has no stage of its own: it trains in the UNet's, whose checkpoints hold both parts.
"""


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
        """The file with the result of each trained part, by the part's name: its running average where one is kept."""
        return {part: path for one in self.checkpoints.values() for part, path in weights_in(one).items()}

    @property
    def training_weights(self) -> dict[str, Path]:
        """The file each trained part goes on from, by the part's name: the weights as the last step left them."""
        return {part: path for one in self.checkpoints.values() for part, path in weights_in(one, last=True).items()}


def weights_file(part: str) -> str:
    """The name of the file in a checkpoint that holds a part as the last step left it."""
    return f"{part}.safetensors"


def average_file(part: str) -> str:
    """The name of the file in a checkpoint that holds a part's running average, where one is kept."""
    return f"{part}_ema.safetensors"


def weights_in(checkpoint: Checkpoint, *, last: bool = False) -> dict[str, Path]:
    """The files of the parts a checkpoint holds, by the part's name; those of the last step, or of the result."""
    found = {}
    for part in STAGES:
        names = [weights_file(part)] if last else [average_file(part), weights_file(part)]
        there = [checkpoint.path / name for name in names if (checkpoint.path / name).is_file()]
        if there:
            found[part] = there[0]
    return found


def is_joint(config: Config) -> bool:
    """Whether the text encoder trains in the UNet's stage."""
    return config.text_encoder.mode == "joint" and config.text_encoder.steps > 0


def steps_of(session: Session, stage: str) -> int:
    """How many steps a stage of this session has in all."""
    config = session.config
    if stage == "text_encoder":
        return 0 if is_joint(config) else config.text_encoder.steps
    return config.unet.steps


def how_far(session: Session, done: Mapping[str, int]) -> str:
    """How far each stage is by the steps `done` in it, such as `text_encoder 350/350, unet 500/1500`."""
    if is_joint(session.config):
        return f"unet {done['unet']}/{steps_of(session, 'unet')} with the text encoder"
    return ", ".join(f"{stage} {done[stage]}/{steps_of(session, stage)}" for stage in STAGES)


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


def standings(session: Session, wanted: Sequence[int] | None = None) -> tuple[list[Standing], list[str]]:
    """Where the session stood at each checkpoint of the UNet stage whose every byte verifies, by step.

    Args:
        wanted: only those of these steps.

    Returns them, and a line for each checkpoint that was passed over.

    Raises:
        ConfigError: one that is wanted is not there.
        TrainingError: none verifies, or the text encoder they were trained with is gone or damaged.
    """
    there = complete(session.checkpoints, "unet")
    if missing := sorted(set(wanted or ()) - {one.step for one in there}):
        found = ", ".join(str(one.step) for one in there) or "none"
        raise ConfigError(
            f"{session.name} has no checkpoint of the UNet stage at step {', '.join(map(str, missing))}",
            where="checkpoints",
            fix=f"There are: {found}.",
        )
    good, said = [], []
    for one in there:
        if wanted is not None and one.step not in wanted:
            continue
        if wrong := faults(one.path):
            said.append(f"checkpoint {one.path.name} is passed over: {wrong[0]}")
        else:
            good.append(one)
    if not good:
        raise TrainingError(
            "has no checkpoint of the UNet stage that verifies" + (f" ({'; '.join(said)})" if said else ""),
            where=session.name,
            fix=f"Train it first: fastdb train {session.name}",
        )
    now, steps = standing(session), steps_of(session, "text_encoder")
    if now.done("text_encoder") < steps:
        raise TrainingError(
            f"the text encoder of step {steps}, which its UNet was trained with, is not there or does not verify",
            where=session.name,
            fix="Put its checkpoint back, or train it anew with --restart.",
        )
    return [replace(now, checkpoints={**now.checkpoints, "unet": one}) for one in good], said


def progress_of(session: Session) -> dict[str, int]:
    """The steps done in each stage, by the names of its checkpoints alone: quick, and not verified."""
    return {
        stage: max((checkpoint.step for checkpoint in complete(session.checkpoints, stage)), default=0)
        for stage in STAGES
    }
