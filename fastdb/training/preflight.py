"""Checks before training that take a second and need no torch.

Among them the recipe, which is everything the trained weights are a function of. A checkpoint contains its recipe, and
training resumes from it only while the session's recipe is the same.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdb.checkpoints.checkpoint import Checkpoint, complete
from fastdb.checkpoints.leftovers import duplicates
from fastdb.checkpoints.progress import STAGES, abandoned, is_joint, steps_of
from fastdb.config import Config, flat, format_change
from fastdb.errors import CheckpointError, ConfigError, TrainingError
from fastdb.images.captions import InstanceImage, instance_images_of
from fastdb.images.originals import originals_of, paths_argument, photo_notes
from fastdb.models.diffusers_folder import BaseModel
from fastdb.reporting import Note, argument, counted
from fastdb.sessions.file_hashes import changes
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import explained, write_bytes
from fastdb.storage.manifest import sha256
from fastdb.training.disk_estimate import check_space

if TYPE_CHECKING:
    from fastdb.training.class_images import ClassImage

FREE = (
    *("checkpoints.", "samples.", "token.", "environment.", "unet.ema_on_cpu", "optimizer.fused_backward_pass"),
    *("stop.when", "stop.patience", "stop.margin", "stop.check"),
)
"""Settings and groups of settings that do not touch the result and may change at any time."""
CONFIGURATIONS = "the base model's configurations"
"""Key of a recipe, absent in recipes of earlier versions."""
_EXTENSIONS = "unet.extensions"
ENDS = ("unet.settled_after", "text_encoder.settled_after")
"""Settings with the steps after which a stage settled."""
_SETTLED, _ENDED = ENDS
_CAPTION_DROPOUT, _DROPOUT = "captions.caption_dropout", "captions.dropout"
_RATE_CHANGES = ("unet.rate_changes", "text_encoder.rate_changes")
MACHINE = ("precision", "gradient_checkpointing", "split_batches", "deterministic", "optimizer.name")
"""Settings that fit a recipe to a machine. They change the result by rounding only, so they may change with a note; the
optimizer's moments are converted."""


def preflight(session: Session, base: BaseModel, restart: bool = False, from_step: int | None = None) -> list[Note]:
    """Raise the errors that training would meet later, and return notes.

    Args:
        restart: training will not resume from a checkpoint.
        from_step: training will resume from no checkpoint of the UNet stage after that step.

    Raises:
        ImageError: there are no instance images, or a prompt is missing.
        TrainingError: a setting is missing, or training cannot resume from the newest checkpoint.
        SessionError: before the first checkpoint, `session.yaml` is incomplete.
        StorageError: the session's folder cannot be written, or its disk is too full for the first checkpoints.
    """
    begun = not restart and bool(complete(session.checkpoint_folders, lineage=session.record.lineages))
    if not begun:
        session.check_complete()
    images = instances(session)
    check_hold_out(session.config, len(images), session.name)
    if not any(steps_of(session, stage) for stage in STAGES):
        raise TrainingError(
            "unet.steps is 0, and a text encoder in joint mode trains only in the UNet stage"
            if is_joint(session.config)
            else "both stages have 0 steps, so there is nothing to train",
            where=session.name,
            fix=f"Set the steps of a stage: fastdb train {argument(session.name)} --set unet.steps=800",
        )
    if not restart:
        check_resume(session, images, from_step)
        session.check_complete()
    if session.config.prior.class_images and not (session.config.prior.prompts or session.record.subject.class_word):
        raise TrainingError(
            "prior preservation needs a class word or prompts for the class images",
            where=session.name,
            fix=f"Set a prompt: fastdb train {argument(session.name)} --set prior.prompts='a photo of a dog'",
        )
    probe = session.checkpoints / ".can-be-written"
    with explained(probe):
        session.checkpoints.mkdir(exist_ok=True)
        write_bytes(probe, b"")
        # Another process may run the same check at the same time.
        probe.unlink(missing_ok=True)
    notes = [*duplicates(session), *photo_notes(session, begun)]
    notes += changes(session.path, within=[FILE, session.instance_images.name, session.captions.name])
    notes += changes(session.path, within=[session.class_images.name], quick=True)
    if tight := check_space(session, base.folder, restart, from_step):
        notes.append(tight)
    return notes


def check_hold_out(config: Config, images: int, session: str) -> None:
    """Raise if no instance image is left to train on.

    Raises:
        TrainingError: naming the setting.
    """
    held_out = config.stop.hold_out
    if held_out and held_out >= images:
        raise TrainingError(
            f"stop.hold_out is {held_out}, and there are {counted(images, 'instance image')}, so none would be trained",
            where=session,
            fix=f"Hold out fewer: fastdb train {argument(session)} --set stop.hold_out=0",
        )


def instances(session: Session) -> list[InstanceImage]:
    """Return the session's instance images with their prompts.

    Raises:
        ImageError: there are none, or a prompt is missing.
    """
    config = session.config.captions
    return instance_images_of(
        session.instance_images,
        session.captions if config.caption_files else None,
        config.instance_prompt or None,
    )


def check_resume(session: Session, images: Sequence[InstanceImage], from_step: int | None = None) -> None:
    """Raise if the newest checkpoints have another recipe than the session; they are not verified.

    Args:
        from_step: checkpoints of the UNet stage after that step do not count.

    Raises:
        TrainingError: naming the changes.
    """
    until, lineage = {"unet": from_step}, session.record.lineages
    checkpoints = [
        complete(session.checkpoint_folders, stage, lineage=lineage, until=until.get(stage)) for stage in STAGES
    ]
    belonging = [[one for one in of_stage if not abandoned(session, one)] for of_stage in checkpoints]
    newest = [of_stage[-1] for of_stage in belonging if of_stage]
    try:
        # The trainer checks the class images after it has made those that are missing.
        check_recipes(newest, make_recipe(session, images, None), session.name, from_step or 0, session.path)
    except (CheckpointError, KeyError):
        return  # A damaged checkpoint: the trainer verifies all of them and reports those it skips.


def make_recipe(
    session: Session, images: Sequence[InstanceImage], class_images: Sequence[ClassImage] | None
) -> dict[str, Any]:
    """Return the session's recipe as plain data, without class images where they are not known yet.

    Raises:
        OSError: an image cannot be read.
    """
    recipe: dict[str, Any] = {
        "base model": session.record.base_model.fingerprint,
        "settings": recipe_settings(session.config),
        "instance images": {image.path.name: [image.prompt, sha256(image.path)] for image in images},
    }
    if session.record.base_model.configurations:
        recipe[CONFIGURATIONS] = session.record.base_model.configurations
    if class_images is not None:
        recipe["class images"] = _digest(sha256(image.path) for image in class_images)
        prompts = [image.prompt for image in class_images]
        several = len(set(prompts)) > 1
        recipe["class prompt"] = _digest(f"{prompt}\n" for prompt in prompts) if several else "".join(prompts[:1])
    return recipe


def check_recipes(
    checkpoints: Iterable[Checkpoint],
    recipe: dict[str, Any],
    session: str,
    chosen: int = 0,
    folder: Path | None = None,
) -> None:
    """Raise if a checkpoint was made by another recipe.

    The settings have to agree for all steps that were done: settings of the UNet stage do not count for a checkpoint of
    the text encoder stage, nor does an extension that had not begun.

    Args:
        session: its name.
        chosen: the step that `--from-step` named.
        folder: that of the session, for the path of an export in the message.

    Raises:
        TrainingError: naming the changes.
        CheckpointError: a checkpoint's state cannot be read.
    """
    for checkpoint in checkpoints:
        differences = _differences(checkpoint.state["recipe"], recipe, checkpoint)
        if differences:
            shown = "; ".join(f"{subject} {change}".strip() for subject, change in differences[:3])
            rest = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise TrainingError(
                f"changed since step {checkpoint.step} of the {checkpoint.stage} stage: {shown}{rest}",
                subject=session,
                fix=_remedy(checkpoint, dict(differences), session, chosen, folder),
            )


def _remedy(checkpoint: Checkpoint, changed: Mapping[str, str], session: str, chosen: int, folder: Path | None) -> str:
    """Return the remedy: no step can be kept with another recipe, but its weights can be a base model."""
    added = [argument(name) for name, change in changed.items() if change == "was added"]
    if added and len(added) == len(changed):
        return (
            f"Undo the change to resume: fastdb remove-images {argument(session)} "
            f"{' '.join(added)}. Or train a session with all photos that begins with these weights: fastdb new NAME "
            f"PHOTOS --from {argument(session)}"
        )
    if folder is not None and set(changed.values()) == {"was removed"} and (photos := originals_of(folder, changed)):
        return (
            "Put the images back, or crop their originals again if nobody had edited the crops: fastdb add-images "
            f"{argument(session)} {paths_argument(photos)}"
        )
    stage_only = checkpoint.stage == "unet" and all(subject.startswith("unet.") for subject in changed)
    anew = "restart the UNet stage with --from-step 0, or everything with" if stage_only else "start over with"
    remedy = f"Undo the change to resume, or {anew} --restart (old checkpoints are moved aside, not deleted)."
    if checkpoint.stage == "unet" and any(subject.endswith((".learning_rate", ".rate_changes")) for subject in changed):
        command = f"fastdb train {argument(session)} --from-step N --set unet.learning_rate=X"
        remedy = f"{remedy} For another rate undo it, then {command}."
    if "unet.steps" in changed:
        remedy = f"{remedy} For more steps undo it, then fastdb extend {argument(session)} --steps N."
    if not chosen:
        return remedy
    file = str((folder or Path()) / f"{session}_step_{chosen}.safetensors")
    return (
        f"{remedy} Its weights can be the base model of a new session: fastdb export {argument(session)} --step "
        f"{chosen} --precision fp32, then fastdb new with --base {shlex.quote(file)}."
    )


def _differences(then: dict[str, Any], now: dict[str, Any], checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return the changed settings and images as (subject, change)."""
    differences = []
    for name in ("base model", "class images", "class prompt"):
        if name in now and then.get(name) != now[name]:
            differences.append((f"the {name}", ""))
    if CONFIGURATIONS in then and CONFIGURATIONS in now and then[CONFIGURATIONS] != now[CONFIGURATIONS]:
        differences.append((CONFIGURATIONS, ""))
    old, new = (_until(checkpoint, settings) for settings in (_current(then.get("settings", {})), now["settings"]))
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            differences.append((name, " -> ".join(format_change(old.get(name), new.get(name)))))
    old, new = then.get("instance images", {}), now["instance images"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            change = "was added" if name not in old else "was removed" if name not in new else "or its caption"
            differences.append((name, change))
    return differences


def recipe_settings(config: Config) -> dict[str, Any]:
    """Return the settings a result depends on by their dotted names."""
    settings = flat(config.model_dump(mode="json"))
    unused = (*FREE, *(["lora."] if config.method == "full" else []))
    return {name: value for name, value in settings if not name.startswith(unused) and name not in MACHINE}


def _until(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the steps up to a checkpoint depend on.

    Those are the extensions and changed rates that had begun, and all others.
    """
    if checkpoint.stage == "text_encoder":
        # It ends after a step that it has done.
        return {name: value for name, value in settings.items() if not name.startswith(("unet.", _ENDED))}
    changes = {
        name: [change for change in settings.get(name, ()) if change["after"] < checkpoint.step]
        for name in _RATE_CHANGES
    }
    settled = [step for step in settings.get(_SETTLED, ()) if step < checkpoint.step]
    begun, start = [], _end(0, settings.get("unet.steps", 0), settled)
    for extension in settings.get(_EXTENSIONS, ()):
        if not isinstance(extension, Mapping) or not isinstance(extension.get("steps"), int):
            return dict(settings)  # Written by a newer version, see below.
        if start < checkpoint.step:
            begun.append(extension)
        start = _end(start, extension["steps"], settled)
    return {**settings, **changes, _SETTLED: settled, _EXTENSIONS: begun}


def _end(start: int, planned: int, settled: Sequence[int]) -> int:
    """Return the step after which the steps from `start` on end."""
    return next((step for step in settled if start < step < start + planned), start + planned)


def _current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings by today's names; settings that were unknown then had the effect of their defaults."""
    if _CAPTION_DROPOUT not in settings and _DROPOUT in settings:  # Before format 4 of sessions it had this name.
        settings = {_CAPTION_DROPOUT if name == _DROPOUT else name: value for name, value in settings.items()}
    try:
        return recipe_settings(Config().changed(settings))
    except ConfigError:
        return dict(settings)  # Written by a newer version: differences are reported by its names.


def _digest(parts: Iterable[str]) -> str:
    whole = "".join(parts)
    return hashlib.sha256(whole.encode()).hexdigest() if whole else ""
