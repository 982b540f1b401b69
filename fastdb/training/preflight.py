"""Look before hours of work: everything that can be known to fail, in a second and without torch."""

from __future__ import annotations

from pathlib import Path

from fastdb.errors import TrainingError
from fastdb.images.intake import InstanceImage, instance_images_of
from fastdb.models.base_model import open_base_model
from fastdb.sessions.session import Session
from fastdb.storage.durable import explained, write_bytes


def preflight(session: Session) -> None:
    """Raise what training would stumble over later.

    Raises:
        ModelError: the base model cannot be used.
        ImageError: there are no instance images, or one has no prompt.
        TrainingError: class images are wanted and nothing says of what.
        StorageError: the session's folder cannot be written.
    """
    open_base_model(Path(session.record.base_model.folder))
    instances(session)
    if session.config.prior.class_images and session.class_prompt == "a photo of":
        raise TrainingError(
            "class images are wanted, but the session has no class word",
            where=session.name,
            fix="Set a prompt for them, such as --set prior.prompt='a photo of a dog'.",
        )
    probe = session.checkpoints / ".can-be-written"
    with explained(probe):
        session.checkpoints.mkdir(exist_ok=True)
        write_bytes(probe, b"")
        probe.unlink()


def instances(session: Session) -> list[InstanceImage]:
    """The session's instance images with their prompts.

    Raises:
        ImageError: there are none, or one has no prompt.
    """
    config = session.config.captions
    return instance_images_of(
        session.instance_images,
        session.captions if config.caption_files else None,
        config.instance_prompt or None,
    )
