"""Training progress of a session and the weights it has produced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fastdb.checkpoints.checkpoint import (
    AVERAGE,
    RAW,
    Checkpoint,
    Fault,
    complete,
    fault_in,
    newest,
    strays,
    tensors_file,
)
from fastdb.checkpoints.claims import claim
from fastdb.config import Config
from fastdb.errors import CheckpointError, ConfigError, TrainingError
from fastdb.reporting import Note, argument
from fastdb.sessions.session import Session
from fastdb.storage import MANIFEST

STAGES = ("text_encoder", "unet")
"""The stages in their order; each is named after the part it trains.

In joint mode the text encoder has no stage of its own: it trains in the UNet's, whose checkpoints contain both parts.
"""

STEPS = "fastdb.steps"
"""Key in the header of an export with the steps of each stage, as `session.yaml` records them."""


@dataclass(frozen=True)
class Standing:
    """The newest valid checkpoint of each stage, and a note for each file or checkpoint that was skipped."""

    checkpoints: dict[str, Checkpoint]
    skipped: tuple[Note, ...]

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint from which training resumes: the newest of the latest stage."""
        return next((self.checkpoints[stage] for stage in reversed(STAGES) if stage in self.checkpoints), None)

    def done(self, stage: str) -> int:
        """Return the number of steps done in a stage."""
        return self.checkpoints[stage].step if stage in self.checkpoints else 0

    @property
    def weights(self) -> dict[str, Path]:
        """The file with the result of each trained part: its running average, where training keeps it."""
        return self._files(f"{AVERAGE}{RAW}", RAW)

    @property
    def training_weights(self) -> dict[str, Path]:
        """The file from which each trained part resumes: the weights after the last step."""
        return self._files(RAW)

    def _files(self, *endings: str) -> dict[str, Path]:
        """Return the first existing file of each part, raw or compressed.

        Only files that the manifest names are used: others were never verified.
        """
        files = {}
        for checkpoint in self.checkpoints.values():
            for part in STAGES:
                paths = (tensors_file(checkpoint, f"{part}{ending}") for ending in endings)
                if path := next((path for path in paths if path is not None), None):
                    files[part] = path
        return files


def is_joint(config: Config) -> bool:
    """Whether the text encoder trains in the UNet's stage."""
    return config.text_encoder.mode == "joint" and config.text_encoder.steps > 0


def steps_of(session: Session, stage: str) -> int:
    """Return the total number of steps of a stage, including extensions."""
    config = session.config
    if stage == "text_encoder":
        return 0 if is_joint(config) else config.text_encoder.all_steps
    return config.unet.all_steps


def how_far(session: Session, done: Mapping[str, int]) -> str:
    """Format the steps `done` in each stage, such as `text_encoder 350/350, unet 500/1500`."""
    if is_joint(session.config):
        return f"unet {done['unet']}/{steps_of(session, 'unet')} with the text encoder"
    return ", ".join(f"{stage} {done[stage]}/{steps_of(session, stage)}" for stage in STAGES)


def steps_text(done: Mapping[str, int]) -> str:
    """Format the steps done in each stage, such as `text_encoder 350, unet 1500`."""
    return ", ".join(f"{stage} {step}" for stage, step in done.items())


def standing(session: Session, unusable: Fault | None = None) -> Standing:
    """Read a session's checkpoints and verify every byte of those that count.

    A later stage counts only after a complete earlier stage: if the text encoder's last checkpoint is damaged, that
    stage has to resume first.

    Args:
        unusable: a further check of valid checkpoints, such as `finite_numbers.not_finite`.
    """
    valid: dict[str, Checkpoint] = {}
    skipped: list[Note] = []

    def fault(checkpoint: Checkpoint) -> str:
        return abandoned(session, checkpoint) or (unusable(checkpoint) if unusable else "")

    for stage in STAGES:
        checkpoint, notes = newest(session.checkpoint_folders, stage, session.record.lineages, fault)
        skipped += notes
        if checkpoint is not None:
            valid[stage] = checkpoint
        if steps_of(session, stage) > (checkpoint.step if checkpoint else 0):
            break
    return Standing(valid, (*skipped, *strays(session.checkpoints)))


def abandoned(session: Session, checkpoint: Checkpoint) -> str:
    """Return why a checkpoint on this machine no longer belongs to its session, or an empty string.

    If another machine changed the learning rate from an earlier step on, the checkpoints after that step were set aside
    there and in the session's folder, but not here.
    """
    if checkpoint.stage != "unet" or checkpoint.path.parent != session.local_checkpoints:
        return ""  # Changes of rates count steps of the UNet stage.
    try:
        changed = [
            entry
            for entry in session.record.revised
            if not entry.reason and int(entry.after.removeprefix("unet step ")) < checkpoint.step
        ]
        saved = (checkpoint.path / MANIFEST).stat().st_mtime
        if not any(datetime.fromisoformat(entry.when).timestamp() >= int(saved) for entry in changed):
            return ""
        recorded = checkpoint.state["recipe"]["settings"]
        for part, own in (("unet", session.config.unet), ("text_encoder", session.config.text_encoder)):
            then = [change for change in recorded.get(f"{part}.rate_changes", ()) if change["after"] < checkpoint.step]
            now = [change.model_dump() for change in own.rate_changes if change.after < checkpoint.step]
            if then != now or recorded.get(f"{part}.learning_rate", own.learning_rate) != own.learning_rate:
                return "another machine changed the learning rate from an earlier step on"
    except (OSError, CheckpointError, KeyError, TypeError, AttributeError, ValueError):
        return ""  # What cannot be read is reported by those who verify it.
    return ""


def standings(
    session: Session, wanted: Sequence[int] | None = None, unusable: Fault | None = None
) -> tuple[list[Standing], list[Note]]:
    """Read where the session stood at each valid checkpoint of the UNet stage, sorted by step.

    Args:
        wanted: only the checkpoints of these steps.
        unusable: see `standing`.

    Returns:
        The standings, and a note for each skipped checkpoint.

    Raises:
        ConfigError: a wanted checkpoint does not exist.
        TrainingError: no checkpoint is valid, or the text encoder that it was trained with is missing or damaged.
    """
    checkpoints = complete(session.checkpoint_folders, "unet")
    if missing := sorted(set(wanted or ()) - {checkpoint.step for checkpoint in checkpoints}):
        raise _no_such_step(session, missing, checkpoints)
    valid: dict[int, Checkpoint] = {}
    skipped = []
    for checkpoint in reversed(checkpoints):
        if checkpoint.step in valid or (wanted is not None and checkpoint.step not in wanted):
            continue
        reason = ""
        if claim(checkpoint.path):
            reason = fault_in(checkpoint, session.record.lineages) or abandoned(session, checkpoint)
            reason = reason or (unusable(checkpoint) if unusable else "")
        if not claim(checkpoint.path):
            # Deleted meanwhile, because there are newer ones by now.
            return standings(session, wanted, unusable)
        if reason:
            skipped.append(Note("checkpoint skipped", checkpoint.path.name, reason))
        else:
            valid[checkpoint.step] = checkpoint
    if not valid:
        others = [one for one in checkpoints if one.step not in (wanted or ()) and wanted is not None]
        steps = sorted({one.step for one in others if not fault_in(one, session.record.lineages)})
        raise no_valid_checkpoint(session, "of the UNet stage", skipped, steps)
    now, total = standing(session, unusable), steps_of(session, "text_encoder")
    if now.done("text_encoder") < total:
        raise TrainingError(
            f"the text encoder of step {total}, with which the UNet was trained, is missing or damaged",
            where=session.name,
            fix="Restore its checkpoint from a copy, or train again with --restart.",
        )
    return [
        replace(now, checkpoints={**now.checkpoints, "unet": checkpoint}) for _, checkpoint in sorted(valid.items())
    ], skipped


def check_step(session: Session, step: int, folders: Sequence[Path] | None = None) -> None:
    """Verify that training can go back to a step of the UNet stage, which is 0 or that of a valid checkpoint.

    Args:
        folders: where the checkpoint has to be; by default any of the session's folders.

    Raises:
        ConfigError: there is no checkpoint of this step.
        TrainingError: training cannot resume from it.
    """
    if step == 0:
        return
    checkpoints = complete(folders or session.checkpoint_folders, "unet")
    reasons = [fault_in(checkpoint, session.record.lineages) for checkpoint in checkpoints if checkpoint.step == step]
    if not reasons:
        raise _no_such_step(session, [step], checkpoints)
    if all(reasons):
        raise TrainingError(
            f"cannot resume from step {step}: {reasons[0]}", subject=session.name, fix="Choose another step."
        )


def no_valid_checkpoint(
    session: Session, of_stage: str, skipped: Sequence[Note], other_steps: Sequence[int] = ()
) -> TrainingError:
    """Return the error for a session without a valid checkpoint, with the remedy that fits its damaged ones.

    Args:
        of_stage: the rest of the clause.
        skipped: a note for each damaged checkpoint.
        other_steps: steps of checkpoints that can be chosen instead.
    """
    what = f"there is no valid checkpoint {of_stage}"
    skipped = [note for note in skipped if note.kind == "checkpoint skipped"]
    if not skipped:
        return TrainingError(what, where=session.name, fix=f"Train it first: fastdb train {argument(session.name)}")
    reasons = "; ".join(f"{note.subject}: {note.reason}" for note in skipped)
    if other_steps:
        what = "the checkpoint of this step is damaged"
        fix = f"Choose another step ({', '.join(map(str, other_steps))}), or restore the checkpoint from a copy."
    else:
        fix = f"Restore a checkpoint from a copy, or train the lost steps again: fastdb train {argument(session.name)}"
    return TrainingError(f"{what} ({reasons})", where=session.name, fix=fix)


def _no_such_step(session: Session, steps: Sequence[int], checkpoints: Sequence[Checkpoint]) -> ConfigError:
    existing = ", ".join(map(str, sorted({checkpoint.step for checkpoint in checkpoints}))) or "none"
    return ConfigError(
        f"has no checkpoint of the UNet stage at step {', '.join(map(str, steps))}",
        subject=session.name,
        fix=f"Existing steps: {existing}.",
    )


def progress_of(session: Session) -> dict[str, int]:
    """Return the steps done in each stage, quickly and unverified, from the names of its own checkpoints."""
    folders, own = session.checkpoint_folders, session.record.lineages
    return {
        stage: max((checkpoint.step for checkpoint in complete(folders, stage, lineage=own)), default=0)
        for stage in STAGES
    }
