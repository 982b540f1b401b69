"""Before the first step: the base model checked, the device chosen, class images made, latents cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from fastdb.checkpoints.progress import STAGES, Standing, standing, steps_of
from fastdb.errors import TrainingError
from fastdb.images.captions import InstanceImage
from fastdb.inference.engine import Engine
from fastdb.models.diffusers_folder import PARTS, BaseModel, fingerprint, weight_file
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.models.resolve import ensure_base
from fastdb.runtime.device import Device, choose_device, cpu_threads, make_deterministic
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.training.batches import Group
from fastdb.training.caches import LatentCache, cache_latents, too_long
from fastdb.training.class_images import ClassImage, class_images
from fastdb.training.optimizers import choose_optimizer
from fastdb.training.plan import Plan, make_plan, next_stage
from fastdb.training.preflight import instances


@dataclass(frozen=True)
class Preparation:
    """Where a session trains, decided once: the base model, the device, the optimizer's name, the instance images."""

    session: Session
    base: BaseModel
    device: Device
    optimizer: str
    images: tuple[InstanceImage, ...]

    @property
    def host(self) -> dict[str, Any]:
        """What the arithmetic depends on beside the recipe."""
        return {
            "device": self.device.name,
            "precision": self.device.precision,
            "optimizer": self.optimizer,
            "gradient checkpointing": self.session.config.gradient_checkpointing,
            "threads": torch.get_num_threads() if self.device.kind == "cpu" else 0,
            "torch": torch.__version__,
        }

    def noise_schedule(self) -> DDPMScheduler:
        """The base model's noise schedule, for training."""
        schedule: DDPMScheduler = DDPMScheduler.from_config(load_scheduler(self.base.folder).config)
        return schedule


def look(session: Session, emit: Emit, said: Sequence[str] = ()) -> tuple[Preparation, Standing, Plan]:
    """Decide everything that does not cost time, and tell the plan, with what was `said` before it.

    Raises:
        FastDBError: training cannot start or go on here.
    """
    base = ensure_base(session, _progress(emit, "base model"))
    check_base(session, base)
    images, device, stands = instances(session), choose_device(session.config.precision), standing(session)
    going_on = stands.checkpoints.get(next_stage(session, stands)[0] or "")
    begun_with = going_on.state["host"]["optimizer"] if going_on else ""
    optimizer = choose_optimizer(session.config.optimizer.name, device.kind, begun_with)
    plan = make_plan(session, stands, device, optimizer, len(images))
    emit(
        "plan",
        lines=[*said, *plan.lines],
        begins=plan.begins,
        stages={name: {"steps": steps_of(session, name), "done": stands.done(name)} for name in STAGES},
    )
    return Preparation(session, base, device, optimizer[0], tuple(images)), stands, plan


def settle(prepared: Preparation, stands: Standing, emit: Emit) -> None:
    """Make results repeatable; on a CPU that needs as many threads as the checkpoint was made with, where there is one.

    What cannot be made the same is told: the result is then equal up to rounding only.
    """
    make_deterministic(prepared.device)
    before = stands.last.state["host"] if stands.last else {}
    if prepared.device.kind == "cpu":
        weights = sum(weight_file(prepared.base.folder, part).stat().st_size for part in PARTS)
        torch.set_num_threads(before.get("threads") or cpu_threads(weights))
    now = prepared.host
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        emit(
            "warning",
            message=f"going on with other arithmetic ({', '.join(changed)}): "
            "the result equals an uninterrupted run up to rounding, not to the bit",
        )


def prior_images(prepared: Preparation, emit: Emit, stopping: Callable[[], bool]) -> list[ClassImage]:
    """The class images, made by the base model where they are missing; see `class_images`."""

    def load_engine() -> Engine:
        return Engine.from_base(prepared.base, device=prepared.device)

    found, said = class_images(prepared.session, load_engine, _progress(emit, "class images"), stopping)
    for line in said:
        emit("warning", message=line)
    return found


def image_groups(prepared: Preparation, prior: Sequence[ClassImage], emit: Emit) -> tuple[Group, ...]:
    """Latents and prompts of the instance images and, with prior preservation, of the class images.

    Raises:
        ImageError: an image cannot be read.
    """

    def latents(paths: Sequence[Path], task: str) -> LatentCache:
        return cache_latents(
            paths,
            size=prepared.session.config.resolution,
            scale=prepared.base.latent_scale,
            vae_hash=prepared.session.record.base_model.fingerprint,
            load_vae=lambda: load_part(prepared.base.folder, "vae", torch.float32).to(prepared.device.kind),
            progress=_progress(emit, task),
        )

    config = prepared.session.config
    instance = Group(
        "instance",
        latents([image.path for image in prepared.images], "latents"),
        tuple(image.prompt for image in prepared.images),
        config.batch_size,
        tuple(image.bare for image in prepared.images) if config.captions.dropout else (),
        config.captions.dropout,
    )
    if not prior:
        return (instance,)
    return instance, Group(
        "class",
        latents([image.path for image in prior], "class latents"),
        tuple(image.prompt for image in prior),
        config.prior.batch_size or config.batch_size,
    )


def tell_long_prompts(prepared: Preparation, groups: Sequence[Group], emit: Emit) -> None:
    """Warn of prompts whose end the text encoder will never see."""
    tokenizer = load_tokenizer(prepared.base.folder)
    for prompt in too_long(tokenizer, [prompt for group in groups for prompt in group.every_prompt]):
        room = tokenizer.model_max_length
        emit("warning", message=f"a prompt has more than {room} tokens and is cut: {prompt[:80]!r}")


def check_base(session: Session, base: BaseModel) -> None:
    """Check that the weights of a base model are those the session began with.

    Raises:
        ModelError: a weight file is missing.
        TrainingError: the weights differ.
    """
    if fingerprint(base.folder) != session.record.base_model.fingerprint:
        raise TrainingError(
            "its weights are not those this session began with",
            where=base.folder,
            fix="Put the same base model back there, or make a new session.",
        )


def _progress(emit: Emit, task: str) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        emit("progress", task=task, done=done, total=total)

    return progress
