"""Weights and metadata for the export of a session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.finite_numbers import not_finite
from fastdb.checkpoints.progress import STAGES, STEPS, how_far, no_valid_checkpoint, standing, standings, steps_text
from fastdb.models.diffusers_folder import PARTS, BaseModel, weight_file
from fastdb.sessions.session import Session


def export_parts(session: Session, base: BaseModel, step: int | None = None) -> tuple[dict[str, Path], dict[str, int]]:
    """Return the raw weights file of each part, and the steps done in each stage.

    Args:
        step: use the checkpoint of this step of the UNet stage instead of the newest.

    Raises:
        ConfigError: there is no checkpoint of that step.
        TrainingError: nothing was trained yet.
        ModelError: a weight file of the base model is missing.
        CheckpointError, StorageError: weights cannot be decompressed.
    """
    unusable = not_finite(base.folder)
    stands = standing(session, unusable) if step is None else standings(session, [step], unusable)[0][0]
    if stands.last is None:
        raise no_valid_checkpoint(session, "to export", stands.skipped)
    parts = {part: weight_file(base.folder, part) for part in PARTS}
    return {**parts, **raw_files(stands.weights, base.folder)}, {stage: stands.done(stage) for stage in STAGES}


def export_metadata(session: Session, base: BaseModel, done: Mapping[str, int]) -> dict[str, str]:
    """Return the header metadata of a safetensors export, with keys of ModelSpec 1.0 where it defines them."""
    config = session.config
    token, prompt = session.record.subject.token, config.captions.instance_prompt
    extended = {"fastdb.extended": "; ".join(map(str, session.extensions))} if session.extensions else {}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": session.name,
        "modelspec.prediction_type": "v" if base.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        # A prompt that was set later may do without the token.
        "modelspec.trigger_phrase": token if not prompt or token in prompt else "",
        "fastdb.trained": how_far(session, done),
        "fastdb.step": str(done["unet"]),
        STEPS: steps_text(done),
        **extended,
        "fastdb.instance_prompt": prompt,
        "fastdb.config": json.dumps(config.model_dump(mode="json")),
    }
