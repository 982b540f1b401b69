"""Divergence of a training, and the command that resumes before it with a lower learning rate."""

from __future__ import annotations

from collections.abc import Mapping

from fastdb.checkpoints.checkpoint import complete, fault_in
from fastdb.checkpoints.progress import is_joint
from fastdb.config import Config
from fastdb.errors import CheckpointError, TrainingError
from fastdb.models.mini_settings import recommended
from fastdb.reporting import argument
from fastdb.sessions.session import Session
from fastdb.training.schedules import peak_at

MOST_SKIPPED = 10
"""Steps in a row that the gradient scaler may skip before a run ends; each halves its scale."""
SOUND = 4.0
"""Loss of a step above which its weights count as ruined; a prediction of zero has a loss of about 1."""
_LOWER = 10
"""Smallest factor by which the proposed learning rate is lower than the one that diverged."""


class Divergence(Exception):
    """Numbers of a step that are not finite, found before they changed a checkpoint; the text is a clause."""


def explained(
    divergence: Divergence, session: Session, stage: str, losses: Mapping[int, float], scaled: bool = False
) -> TrainingError:
    """Return the error for a run that diverged in a stage.

    Args:
        losses: the loss of each step of this run, counted from 1.
        scaled: the run has a gradient scaler, so the range of fp16 may be the cause.
    """
    fix = remedy(session, stage, losses)
    if scaled:
        fix += f". If it happens again, leave fp16: fastdb train {argument(session.name)} --set precision=fp32"
    return TrainingError(str(divergence), where=f"{stage} stage", fix=fix)


def last_sound_step(session: Session, losses: Mapping[int, float]) -> int:
    """Return the step of the newest valid checkpoint of the UNet stage whose weights are not ruined; 0 without one.

    Weights may be finite and useless, which the losses before a checkpoint and that of the next step show.
    """
    lineage = session.record.lineages
    for checkpoint in reversed(complete(session.checkpoint_folders, "unet", lineage=lineage)):
        if fault_in(checkpoint, lineage):
            continue
        try:
            # Checkpoints of earlier versions contain no losses; their training continued.
            recent = [*checkpoint.state.get("losses", ()), losses.get(checkpoint.step + 1, 0.0)]
        except CheckpointError:
            continue
        if all(loss <= SOUND for loss in recent):
            return checkpoint.step
    return 0


def remedy(session: Session, stage: str, losses: Mapping[int, float]) -> str:
    """Return the command that resumes before a stage diverged, with a lower learning rate.

    Args:
        losses: see `explained`; checkpoints contain those of earlier runs.
    """
    config, name = session.config, session.name
    subject = session.record.subject
    usual = Config().changed(recommended(session.record.base_model.folder, subject.class_word, config.method))
    if stage == "text_encoder":
        rate = _lower(config.text_encoder.learning_rate, usual.text_encoder.learning_rate)
        return (
            f"Start over with a lower learning rate: fastdb train {argument(name)} --restart "
            f"--set text_encoder.learning_rate={rate:g}"
        )
    after = last_sound_step(session, losses)
    rates = {"unet": _lower(peak_at(config.unet, after), usual.unet.learning_rate)}
    if is_joint(config) and after < config.text_encoder.steps:
        rates["text_encoder"] = _lower(peak_at(config.text_encoder, after), usual.text_encoder.learning_rate)
    settings = " ".join(f"--set {part}.learning_rate={rate:g}" for part, rate in rates.items())
    command = f"fastdb train {argument(name)} --from-step {after} {settings}"
    return f"Resume from step {after} with a lower learning rate: {command}"


def _lower(rate: float, usual: float) -> float:
    """Return a rate to continue with, of two digits: at most a tenth of `rate`, and at most the usual one."""
    return float(f"{min(rate / _LOWER, usual):.2g}")
