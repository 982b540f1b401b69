"""Look before hours of work: everything that can be known to fail, in a second and without torch."""

from __future__ import annotations

from collections.abc import Sequence

from fastdb import console
from fastdb.checkpoints.checkpoint import own
from fastdb.checkpoints.leftovers import second_things
from fastdb.checkpoints.progress import STAGES, is_joint, steps_of
from fastdb.errors import CheckpointError, TrainingError
from fastdb.images.intake import InstanceImage, instance_images_of
from fastdb.models.diffusers_folder import BaseModel
from fastdb.sessions.file_hashes import changes
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained, write_bytes
from fastdb.training.disk_estimate import check_space
from fastdb.training.recipe import check_recipes, make_recipe


def preflight(session: Session, base: BaseModel, restart: bool = False, from_step: int | None = None) -> None:
    """Raise what training would stumble over later; `restart` says that it will not go on from a checkpoint,
    `from_step` that it will from none of the UNet stage after that step.

    Raises:
        ImageError: there are no instance images, or one has no prompt.
        TrainingError: class images are wanted and nothing says of what, or the newest checkpoint cannot go on.
        StorageError: the session's folder cannot be written, or its disk has no room for the first checkpoints.
    """
    images = instances(session)
    if not any(steps_of(session, stage) for stage in STAGES):
        raise TrainingError(
            "both stages are set to 0 steps, so there is nothing to train"
            if not is_joint(session.config)
            else "the UNet stage, in which the text encoder would train too, is set to 0 steps",
            where=session.name,
            fix="Give one of them steps, such as --set unet.steps=800.",
        )
    if not restart:
        check_goes_on(session, images, from_step)
    if session.config.prior.class_images and session.class_prompts == ("a photo of",):
        raise TrainingError(
            "class images are wanted, but the session has no class word",
            where=session.name,
            fix="Set a prompt for them, such as --set prior.prompts='a photo of a dog'.",
        )
    probe = session.checkpoints / ".can-be-written"
    with explained(probe):
        session.checkpoints.mkdir(exist_ok=True)
        write_bytes(probe, b"")
        # Another process may look at the same moment.
        probe.unlink(missing_ok=True)
    for line in (*second_things(session), *_changed(session)):
        console.say(line)
    if advice := check_space(session, base.folder, restart, from_step):
        console.say(advice)


def check_goes_on(session: Session, images: Sequence[InstanceImage], from_step: int | None = None) -> None:
    """Refuse settings or images with which the newest checkpoints cannot go on; found by name, not verified.

    Those of the UNet stage after `from_step` do not count.

    Raises:
        TrainingError: naming what changed.
    """
    until, lineage = {"unet": from_step}, session.record.lineage
    there = {stage: own(session.checkpoint_folders, stage, lineage, until.get(stage)) for stage in STAGES}
    newest = [found[-1] for found in there.values() if found]
    try:
        # The trainer looks at the class images when it has made those that are missing.
        check_recipes(newest, make_recipe(session, images, None), session.name, from_step or 0)
    except (CheckpointError, KeyError):
        return  # A damaged one: the trainer verifies them all, and tells which it passes over.


def _changed(session: Session) -> list[str]:
    """What of that which training is made from is not as it came: changed by hand, as people may, or damaged."""
    notes = changes(session.path, within=[FILE, session.instance_images.name, session.captions.name])
    notes += changes(session.path, within=[session.class_images.name], quick=True)
    return [console.sentence(note) for note in notes]


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
