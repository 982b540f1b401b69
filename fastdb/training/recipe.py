"""What the result depends on. A checkpoint remembers it, and goes on only where it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdb.config import flat
from fastdb.errors import TrainingError
from fastdb.images.intake import InstanceImage
from fastdb.sessions.session import Session
from fastdb.storage.manifest import sha256

FREE = ("checkpoints.", "samples.")
"""Settings that do not touch the result and may change at any time."""


def make_recipe(session: Session, images: Sequence[InstanceImage], class_images: Sequence[Path]) -> dict[str, Any]:
    """Everything the trained weights are a function of, as plain data.

    Raises:
        OSError: an image cannot be read.
    """
    settings = dict(flat(session.config.model_dump(mode="json")))
    return {
        "base model": session.record.base_model.fingerprint,
        "settings": {name: value for name, value in settings.items() if not name.startswith(FREE)},
        "instance images": {image.path.name: [image.prompt, sha256(image.path)] for image in images},
        "class images": _digest(class_images),
        "class prompt": session.class_prompt if class_images else "",
    }


def check_recipe(then: dict[str, Any], now: dict[str, Any], stage: str, step: int, session: str) -> None:
    """Refuse to go on with another recipe than the checkpoint's.

    What only the UNet stage reads may still change while the text encoder's is not over.

    Raises:
        TrainingError: naming what changed.
    """
    changes = list(_changes(then, now, skip="unet." if stage == "text_encoder" else None))
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise TrainingError(
            f"changed since step {step} of the {stage} stage: {'; '.join(changes[:3])}{more}",
            where=session,
            fix="Put it back to go on, or start again with --restart (the old checkpoints are set aside, not lost).",
        )


def _changes(then: dict[str, Any], now: dict[str, Any], skip: str | None) -> list[str]:
    said = []
    for name in ("base model", "class images", "class prompt"):
        if then.get(name) != now[name]:
            said.append(f"the {name}")
    old, new = then.get("settings", {}), now["settings"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name) and not (skip and name.startswith(skip)):
            said.append(f"{name} {old.get(name)} -> {new.get(name)}")
    old, new = then.get("instance images", {}), now["instance images"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            what = "is new" if name not in old else "is gone" if name not in new else "or its caption differs"
            said.append(f"{name} {what}")
    return said


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest() if paths else ""
