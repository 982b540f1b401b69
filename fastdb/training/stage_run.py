"""A stage's run, from its newest checkpoint to its last step or a request to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import Standing
from fastdb.models.loading import load_scheduler
from fastdb.runtime.device import Device
from fastdb.sessions.events import Emit
from fastdb.sessions.lease import Guard
from fastdb.training.batches import Batches, Group, every_prompt
from fastdb.training.divergence import Divergence, explained
from fastdb.training.loop import Loop
from fastdb.training.observers import Observers, Sampler
from fastdb.training.optimizers import make_optimizer
from fastdb.training.prepare import Preparation
from fastdb.training.saver import Saver, restore
from fastdb.training.stages import build_stage


@dataclass(frozen=True)
class StageRun:
    """What a stage runs on, and whom it reports to.

    Attributes:
        stop: set to save a checkpoint and stop.
        saved: called after each checkpoint.
    """

    prepared: Preparation
    stands: Standing
    recipe: dict[str, Any]
    groups: tuple[Group, ...]
    emit: Emit
    stop: threading.Event
    lease: Guard
    saved: Callable[[], None]


def run_stage(name: str, run: StageRun) -> int:
    """Run a stage from its newest checkpoint and return the steps done in it.

    Raises:
        TrainingError: numbers are not finite; the message names a command that works.
    """
    prepared, stands, groups = run.prepared, run.stands, run.groups
    accelerator = _new_accelerator(prepared)
    base, session, config = prepared.base, prepared.session, prepared.session.config
    schedule = DDPMScheduler.from_config(load_scheduler(base.folder).config)
    batches = Batches(
        groups,
        seed=config.seed,
        stage=name,
        microbatches=config.gradient_accumulation,
        timesteps=schedule.config["num_train_timesteps"],
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    prompts = every_prompt(groups)
    sampler = Sampler(session, base, prompts, run.emit)
    weights = raw_files(stands.training_weights, base.folder)
    every = [*prompts, *sampler.prompts, ""]
    stage = prepared.determinism.run(lambda: build_stage(name, base, config, prepared.device, weights, every))
    parameters = [module.parameters() for module in stage.trained.values()]
    optimizer = make_optimizer(prepared.optimizer, parameters, config.optimizer)
    optimizer = stage.prepare(accelerator, optimizer)
    if name in stands.checkpoints:
        restore(stands.checkpoints[name], stage, optimizer, accelerator, base.folder)
    loop = Loop(accelerator, stage, optimizer, batches, schedule, config, optimizer_name=prepared.optimizer)
    if _is_probed(prepared.device):
        prepared.determinism.run(loop.probe)
        prepared.determinism.run(lambda: sampler.probe(stage, accelerator))
    run.emit("stage", stage=name, step=stands.done(name), steps=stage.steps)
    saver = Saver(session, run.recipe, prepared.host, run.emit, run.saved)
    observers = Observers(loop, saver, sampler, run.emit, run.stop, run.lease)
    try:
        with prepared.determinism.applied():
            return _run(loop, stands.done(name), observers)
    except Divergence as divergence:
        raise explained(divergence, session, name, loop.losses, accelerator.scaler is not None) from divergence


def _run(loop: Loop, start: int, observers: Observers) -> int:
    try:
        return loop.run(start, observers.after_step)
    finally:
        observers.saver.wait()


def _is_probed(device: Device) -> bool:
    """Return whether a stage tries its operations before the first step; a CPU has all, and memory to swap."""
    return device.kind != "cpu"


def _new_accelerator(prepared: Preparation) -> Accelerator:
    """Return a fresh accelerator for a stage.

    A used accelerator would carry over its gradient scaler's state, which a run that begins between the stages does not
    have.
    """
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(prepared.device.precision, prepared.device.precision),
        gradient_accumulation_steps=prepared.session.config.gradient_accumulation,
        cpu=prepared.device.kind == "cpu",
    )
