"""What the result depends on. A checkpoint remembers it, and goes on only where it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdb.config import Config, flat
from fastdb.errors import ConfigError, TrainingError
from fastdb.images.intake import InstanceImage
from fastdb.sessions.checkpoints import Checkpoint
from fastdb.sessions.session import Session
from fastdb.storage.manifest import sha256

if TYPE_CHECKING:
    from fastdb.training.class_images import ClassImage

FREE = ("checkpoints.", "samples.")
"""Settings that do not touch the result and may change at any time."""

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


def check_recipes(then: Iterable[Checkpoint], now: dict[str, Any], session: str) -> None:
    """Refuse to go on from checkpoints that were made by another recipe.

    What only the UNet stage reads does not count for the text encoder's.

    Raises:
        TrainingError: naming what changed.
        CheckpointError: a checkpoint's state cannot be read.
    """
    for checkpoint in then:
        made_by = checkpoint.state["recipe"]
        changes = _changes(made_by, now, skip="unet." if checkpoint.stage == "text_encoder" else None)
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise TrainingError(
                f"changed since step {checkpoint.step} of the {checkpoint.stage} stage: {'; '.join(changes[:3])}{more}",
                where=session,
                fix="Put it back to go on, or start again with --restart (old checkpoints are set aside, not lost).",
            )


def _changes(then: dict[str, Any], now: dict[str, Any], skip: str | None) -> list[str]:
    said = []
    for name in ("base model", "class images", "class prompt"):
        if name in now and then.get(name) != now[name]:
            said.append(f"the {name}")
    old, new = _as_now(then.get("settings", {})), now["settings"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name) and not (skip and name.startswith(skip)):
            said.append(f"{name} {old.get(name)} -> {new.get(name)}")
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


def _as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings by today's names: those it did not know yet had the effect of their defaults."""
    try:
        return _settings(Config().changed(settings))
    except ConfigError:
        return dict(settings)  # A version to come wrote it: what differs is told as it stands there.


def _digest(parts: Iterable[str]) -> str:
    whole = "".join(parts)
    return hashlib.sha256(whole.encode()).hexdigest() if whole else ""
