"""What the result depends on. A checkpoint remembers it, and goes on only where it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdb.checkpoints.checkpoint import Checkpoint
from fastdb.config import Config, flat, setting_told
from fastdb.errors import ConfigError, TrainingError
from fastdb.images.intake import InstanceImage
from fastdb.sessions.session import Session
from fastdb.storage.manifest import sha256

if TYPE_CHECKING:
    from fastdb.training.class_images import ClassImage

FREE = ("checkpoints.", "samples.")
"""Settings that do not touch the result and may change at any time."""

EXTENSIONS = "unet.extensions"

HOW = ("precision", "gradient_checkpointing", "optimizer.name")
"""Settings that fit the same recipe to a machine. They touch the result by rounding: they may change, and that is told;
only the optimizer's kind has to stay until its stage is over."""


def make_recipe(
    session: Session, images: Sequence[InstanceImage], class_images: Sequence[ClassImage] | None
) -> dict[str, Any]:
    """Everything the trained weights are a function of, as plain data; without what is not known yet.

    Raises:
        OSError: an image cannot be read.
    """
    recipe: dict[str, Any] = {
        "base model": session.record.base_model.fingerprint,
        "settings": _settings(session.config),
        "instance images": {image.path.name: [image.prompt, sha256(image.path)] for image in images},
    }
    if class_images is not None:
        recipe["class images"] = _digest(sha256(image.path) for image in class_images)
        prompts = [image.prompt for image in class_images]
        several = len(set(prompts)) > 1
        recipe["class prompt"] = _digest(f"{prompt}\n" for prompt in prompts) if several else "".join(prompts[:1])
    return recipe


def check_recipes(then: Iterable[Checkpoint], now: dict[str, Any], session: str, chosen: int = 0) -> None:
    """Refuse to go on from checkpoints that were made by another recipe.

    The settings have to agree on all steps that were done: what only the UNet stage reads does not count for the text
    encoder's, nor an extension of the UNet stage before it has begun. `chosen` is the step that a person asked for.

    Raises:
        TrainingError: naming what changed.
        CheckpointError: a checkpoint's state cannot be read.
    """
    for checkpoint in then:
        made_by = checkpoint.state["recipe"]
        changes = _changes(made_by, now, checkpoint)
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise TrainingError(
                f"changed since step {checkpoint.step} of the {checkpoint.stage} stage: {'; '.join(changes[:3])}{more}",
                where=session,
                fix=_ways(checkpoint, changes, session, chosen),
            )


def _ways(checkpoint: Checkpoint, changes: Sequence[str], session: str, chosen: int) -> str:
    """What can be done: with another recipe no step that was done can be kept, but its weights can be a base model."""
    stage = checkpoint.stage == "unet" and all(change.startswith("unet.") for change in changes)
    again = "begin the UNet's stage again with --from-step 0, or all with" if stage else "start again with"
    fix = f"Put it back to go on, or {again} --restart (old checkpoints are set aside, not lost)."
    if not chosen:
        return fix
    file = f"{session}_step_{chosen}.safetensors"
    return (
        f"{fix} Its weights can be the base model of a new session: fastdb export {session} --step {chosen} "
        f"--precision fp32, then fastdb new with --base {file}."
    )


def _changes(then: dict[str, Any], now: dict[str, Any], at: Checkpoint) -> list[str]:
    said = []
    for name in ("base model", "class images", "class prompt"):
        if name in now and then.get(name) != now[name]:
            said.append(f"the {name}")
    old, new = (_until(at, settings) for settings in (_as_now(then.get("settings", {})), now["settings"]))
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            said.append(f"{name} {setting_told(old.get(name))} -> {setting_told(new.get(name))}")
    old, new = then.get("instance images", {}), now["instance images"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            what = "is new" if name not in old else "is gone" if name not in new else "or its caption differs"
            said.append(f"{name} {what}")
    return said


def _settings(config: Config) -> dict[str, Any]:
    """The settings a result depends on, by their dotted names."""
    settings = flat(config.model_dump(mode="json"))
    return {name: value for name, value in settings if not name.startswith(FREE) and name not in HOW}


def _until(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the steps up to a checkpoint were a function of; of its extensions those that had begun."""
    if checkpoint.stage == "text_encoder":
        return {name: value for name, value in settings.items() if not name.startswith("unet.")}
    begun, start = [], settings.get("unet.steps", 0)
    for one in settings.get(EXTENSIONS, ()):
        if not isinstance(one, Mapping) or not isinstance(one.get("steps"), int):
            return dict(settings)  # Of a version to come, see below.
        if start < checkpoint.step:
            begun.append(one)
        start += one["steps"]
    return {**settings, EXTENSIONS: begun}


def _as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings by today's names: those it did not know yet had the effect of their defaults."""
    try:
        return _settings(Config().changed(settings))
    except ConfigError:
        return dict(settings)  # A version to come wrote it: what differs is told as it stands there.


def _digest(parts: Iterable[str]) -> str:
    whole = "".join(parts)
    return hashlib.sha256(whole.encode()).hexdigest() if whole else ""
