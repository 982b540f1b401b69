"""Preparation of a run, from the plan to the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastdb.checkpoints.finite_numbers import not_finite
from fastdb.checkpoints.progress import STAGES, Standing, is_joint, standing, steps_of
from fastdb.config import Config
from fastdb.images.captions import InstanceImage
from fastdb.models.base_identity import check_identity
from fastdb.models.diffusers_folder import PARTS, BaseModel, weight_file
from fastdb.models.loading import load_part, load_tokenizer
from fastdb.models.resolve import ensure_base
from fastdb.reporting import Note, Progress
from fastdb.runtime.determinism import Determinism, set_deterministic
from fastdb.runtime.device import Device, choose_device, cpu_threads
from fastdb.runtime.library_imports import import_model_classes
from fastdb.runtime.memory import keep_freed_memory
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.training.batches import HELD_OUT, INSTANCE, Group, every_prompt, generator
from fastdb.training.caches import LatentCache, cache_latents
from fastdb.training.class_images import ClassImage
from fastdb.training.fused_backward import check_fused_backward
from fastdb.training.optimizers import choose_optimizer, moments_by
from fastdb.training.preflight import instances
from fastdb.training.schedules import rate_text


@dataclass(frozen=True)
class StagePlan:
    """Work of a stage.

    `extensions` are clauses such as `200 steps, hold at 1e-06`, and `rate_changes` such as
    `1.6e-07 in step 41 (highest rate of the schedule: 2e-07)`.
    """

    steps: int
    done: int
    own_steps: int
    learning_rate: float
    extensions: tuple[str, ...]
    rate_changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that training will do, as the `plan` event contains it.

    Attributes:
        begins: such as `unet step 40`, or `finished`.
        photos, held_out: numbers of instance images that are trained on and that are not.
        joint_steps: steps in which the text encoder trains with the UNet.
        captions_dropped: share of the turns in which an image's caption is left out; 0 without captions.
        prompts_dropped: share of the turns with the empty prompt.
    """

    begins: str
    stages: dict[str, StagePlan]
    joint_steps: int
    joint_learning_rate: float
    ema_decay: float
    photos: int
    held_out: int
    resolution: int
    class_images: int
    class_prompts: int
    captions_dropped: float
    prompts_dropped: float
    min_snr_gamma: float
    device: str
    precision: str
    precision_reason: str
    optimizer: str
    optimizer_reason: str
    save_every_steps: int
    save_every_minutes: float
    keep_every: int


@dataclass(frozen=True)
class Preparation:
    """Base model, device, optimizer and instance images of a run."""

    session: Session
    base: BaseModel
    device: Device
    optimizer: str
    images: tuple[InstanceImage, ...]
    determinism: Determinism

    @property
    def host(self) -> dict[str, Any]:
        """What the arithmetic depends on beside the recipe, as checkpoints contain it."""
        return {
            "device": self.device.name,
            "precision": self.device.precision,
            "optimizer": self.optimizer,
            "moments by": moments_by(self.optimizer, self.device.kind),
            "gradient checkpointing": self.session.config.gradient_checkpointing,
            "deterministic": self.session.config.deterministic,
            "split batches": self.session.config.split_batches,
            "threads": torch.get_num_threads() if self.device.kind == "cpu" else 0,
            "torch": torch.__version__,
        }


def plan_run(session: Session, emit: Emit, device: str = "") -> tuple[Preparation, Standing, Plan]:
    """Decide everything that costs no time, and emit notes about skipped checkpoints and the plan.

    Args:
        device: the device asked for, such as `cuda:1`.

    Raises:
        FastDBError: training cannot start or resume here.
    """
    base = ensure_base(session, progress_events(emit, "base model", "B"))
    check_identity(session.record.base_model, base.folder, remembered=False)
    images, stands = instances(session), standing(session, not_finite(base.folder))
    chosen = choose_device(session.config.precision, device)
    check_fused_backward(session.config, chosen.precision, session.name)
    stage = next((name for name in STAGES if stands.done(name) < steps_of(session, name)), None)
    checkpoint = stands.checkpoints.get(stage or "")
    begun_with = checkpoint.state["host"]["optimizer"] if checkpoint else ""
    optimizer, reason = choose_optimizer(session.config.optimizer.name, chosen.kind, begun_with)
    config = session.config
    captioned = any(image.prompt != image.bare for image in images)
    plan = Plan(
        begins=f"{stage} step {stands.done(stage)}" if stage else "finished",
        stages={name: _stage_plan(name, session, stands.done(name)) for name in STAGES},
        joint_steps=min(config.text_encoder.steps, config.unet.all_steps) if is_joint(config) else 0,
        joint_learning_rate=config.text_encoder.learning_rate,
        ema_decay=config.unet.ema_decay,
        photos=len(images) - config.stop.hold_out,
        held_out=config.stop.hold_out,
        resolution=config.resolution,
        class_images=config.prior.class_images,
        class_prompts=len(session.class_prompts),
        captions_dropped=config.captions.caption_dropout if captioned else 0.0,
        prompts_dropped=config.captions.dropout,
        min_snr_gamma=config.min_snr_gamma,
        device=chosen.name,
        precision=chosen.precision,
        precision_reason=chosen.reason,
        optimizer=optimizer,
        optimizer_reason=reason,
        save_every_steps=config.checkpoints.every_steps,
        save_every_minutes=config.checkpoints.every_minutes,
        keep_every=config.checkpoints.keep_every,
    )
    for note in stands.skipped:
        emit("note", **asdict(note))
    # Consoles of versions before typed plans print `lines`.
    lines = [f"{name}: {stage.done} of {stage.steps} steps done" for name, stage in plan.stages.items()]
    emit("plan", lines=lines, **asdict(plan))
    determinism = Determinism(lambda operation: emit("note", **asdict(Note("not deterministic", operation))))
    return Preparation(session, base, chosen, optimizer, tuple(images), determinism), stands, plan


def settle(prepared: Preparation, stands: Standing, emit: Emit) -> None:
    """Make results repeatable, and emit a note if they will match an earlier part of the run only up to rounding.

    On a CPU the number of threads is part of the arithmetic; a checkpoint's number is used again.
    """
    import_model_classes()
    set_deterministic(prepared.device.kind, prepared.session.config.deterministic)
    before = stands.last.state["host"] if stands.last else {}
    if prepared.device.kind == "cpu":
        if not prepared.session.config.gradient_checkpointing:
            keep_freed_memory()
        weights = sum(weight_file(prepared.base.folder, part).stat().st_size for part in PARTS)
        torch.set_num_threads(before.get("threads") or cpu_threads(weights))
    now = prepared.host
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        emit("note", **asdict(Note("arithmetic changed", reason=", ".join(changed))))


def image_groups(prepared: Preparation, prior: Sequence[ClassImage], emit: Emit) -> tuple[Group, ...]:
    """Return latents and prompts of the instance images and, with prior preservation, of the class images.

    Emits a note for each prompt that the text encoder cuts.

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
            progress=progress_events(emit, task),
        )

    config = prepared.session.config
    images, held_out = split_images(prepared.images, config)
    groups = [
        Group(
            INSTANCE,
            latents([image.path for image in images], "latents"),
            tuple(image.prompt for image in images),
            config.batch_size,
            tuple(image.bare for image in images) if config.captions.caption_dropout else (),
            config.captions.caption_dropout,
            config.captions.dropout,
        )
    ]
    if prior:
        groups.append(
            Group(
                "class",
                latents([image.path for image in prior], "class latents"),
                tuple(image.prompt for image in prior),
                config.prior.batch_size or config.batch_size,
            )
        )
    if held_out:
        cache = latents([image.path for image in held_out], "held-out latents")
        groups.append(Group(HELD_OUT, cache, tuple(image.prompt for image in held_out), size=0))
    tokenizer = load_tokenizer(prepared.base.folder)
    for prompt in dict.fromkeys(every_prompt(groups)):
        if len(tokenizer(prompt, truncation=False).input_ids) > tokenizer.model_max_length:
            emit("note", **asdict(Note("prompt cut", repr(prompt[:80]), str(tokenizer.model_max_length))))
    return tuple(groups)


def split_images(
    images: Sequence[InstanceImage], config: Config
) -> tuple[Sequence[InstanceImage], Sequence[InstanceImage]]:
    """Return the images to train on, and the `stop.hold_out` others, which the session's seed decides."""
    order = torch.randperm(len(images), generator=generator(config.seed, HELD_OUT)).tolist()
    apart = set(order[: config.stop.hold_out])
    trained = [image for number, image in enumerate(images) if number not in apart]
    return trained, [image for number, image in enumerate(images) if number in apart]


def progress_events(emit: Emit, task: str, unit: str = "it") -> Progress:
    """Return a progress callback that emits `progress` events of a task; the unit `B` is bytes."""
    return lambda done, total: emit("progress", task=task, done=done, total=total, unit=unit)


def _stage_plan(name: str, session: Session, done: int) -> StagePlan:
    config, steps = session.config, steps_of(session, name)
    if name == "text_encoder":
        return StagePlan(steps, done, steps, config.text_encoder.learning_rate, ())
    extensions = tuple(str(extension) for extension in config.unet.extensions)
    changes = tuple(rate_text(config.unet, change.after) for change in config.unet.rate_changes)
    return StagePlan(steps, done, config.unet.steps, config.unet.learning_rate, extensions, changes)
