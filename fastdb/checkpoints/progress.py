"""Where a session's training stands, and which weights are its result so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdb.checkpoints.checkpoint import Checkpoint, complete, newest, oddments, passed_over, wrong_with
from fastdb.config import Config
from fastdb.errors import ConfigError, TrainingError
from fastdb.sessions.session import Session
from fastdb.storage.manifest import hashes_in

STAGES = ("text_encoder", "unet")
"""The stages in their order; each is named after the part it trains.

In the joint mode the text encoder has no stage of its own: it trains in the UNet's, whose checkpoints hold both parts.
"""


RAW = ".safetensors"
PACKED = ".packed"
"""Suffixes of tensor files in a checkpoint: raw and compressed, see `checkpoints/compressed_checkpoint`."""

AVERAGE = "_ema"


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
    """The name of the file in a raw checkpoint that holds a part as the last step left it."""
    return f"{part}{RAW}"


def average_file(part: str) -> str:
    """The name of the file in a raw checkpoint that holds a part's running average, where one is kept."""
    return f"{part}{AVERAGE}{RAW}"


def needed(stage: str) -> tuple[tuple[str, str], ...]:
    """What a checkpoint of a stage must hold to be one: the weights that train in it, raw or packed."""
    return ((weights_file(stage), f"{stage}{PACKED}"),)


def tensors_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """The file of a checkpoint that its raw form calls `name`, raw or packed; None where its manifest has neither."""
    listed = hashes_in(checkpoint.path)
    both = (name, name.removesuffix(RAW) + PACKED)
    return next((checkpoint.path / one for one in both if one in listed), None)


def weights_in(checkpoint: Checkpoint, *, last: bool = False) -> dict[str, Path]:
    """The files of the parts a checkpoint holds, by the part's name; those of the last step, or of the result.

    Raw or packed, and only what its manifest names: other files were never held against anything.
    """
    found = {}
    for part in STAGES:
        names = [weights_file(part)] if last else [average_file(part), weights_file(part)]
        there = (tensors_file(checkpoint, name) for name in names)
        if path := next((path for path in there if path is not None), None):
            found[part] = path
    return found


def is_joint(config: Config) -> bool:
    """Whether the text encoder trains in the UNet's stage."""
    return config.text_encoder.mode == "joint" and config.text_encoder.steps > 0


def steps_of(session: Session, stage: str) -> int:
    """How many steps a stage of this session has in all, extensions among them."""
    config = session.config
    if stage == "text_encoder":
        return 0 if is_joint(config) else config.text_encoder.steps
    return config.unet.all_steps


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
        checkpoint, lines = newest(session.checkpoint_folders, stage, session.record.lineage, needed(stage))
        said += lines
        if checkpoint is not None:
            good[stage] = checkpoint
        if steps_of(session, stage) > (checkpoint.step if checkpoint else 0):
            break
    return Standing(good, (*said, *oddments(session.checkpoints)))


def standings(session: Session, wanted: Sequence[int] | None = None) -> tuple[list[Standing], list[str]]:
    """Where the session stood at each checkpoint of the UNet stage whose every byte verifies, by step.

    Args:
        wanted: only those of these steps.

    Returns them, and a line for each checkpoint that was passed over.

    Raises:
        ConfigError: one that is wanted is not there.
        TrainingError: none verifies, or the text encoder they were trained with is gone or damaged.
    """
    there = complete(session.checkpoint_folders, "unet")
    if missing := sorted(set(wanted or ()) - {one.step for one in there}):
        raise _missing(session, missing, there)
    good, said = {}, []
    for one in reversed(there):
        if one.step in good or (wanted is not None and one.step not in wanted):
            continue
        if wrong := wrong_with(one, session.record.lineage, needs=needed(one.stage)):
            said.append(passed_over(one, wrong))
        else:
            good[one.step] = one
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
    return [replace(now, checkpoints={**now.checkpoints, "unet": one}) for _, one in sorted(good.items())], said


def check_step(session: Session, step: int, folders: Sequence[Path] | None = None) -> None:
    """Make sure that training can go back to a step of the UNet stage: 0, or a checkpoint whose every byte verifies.

    Args:
        folders: where it has to lie; anywhere of the session's where none are given.

    Raises:
        ConfigError: it is not there.
        TrainingError: it cannot be gone on from.
    """
    if step == 0:
        return
    there = complete(folders or session.checkpoint_folders, "unet")
    these = [one for one in there if one.step == step]
    if not these:
        raise _missing(session, [step], there)
    reasons = [wrong_with(one, session.record.lineage, needs=needed("unet")) for one in these]
    if all(reasons):
        raise TrainingError(
            f"the checkpoint of step {step} cannot be gone on from: {reasons[0]}",
            where=session.name,
            fix="Choose another step.",
        )


def _missing(session: Session, steps: Sequence[int], there: Sequence[Checkpoint]) -> ConfigError:
    found = ", ".join(map(str, sorted({one.step for one in there}))) or "none"
    return ConfigError(
        f"{session.name} has no checkpoint of the UNet stage at step {', '.join(map(str, steps))}",
        where="checkpoints",
        fix=f"There are: {found}.",
    )


def progress_of(session: Session) -> dict[str, int]:
    """The steps done in each stage, by the names of its checkpoints alone: quick, and not verified."""
    return {
        stage: max((checkpoint.step for checkpoint in complete(session.checkpoint_folders, stage)), default=0)
        for stage in STAGES
    }
