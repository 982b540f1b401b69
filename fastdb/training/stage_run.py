"""A stage's run, from its newest checkpoint to its last step or a request to stop."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler

from fastdb.checkpoints.checkpoint import Checkpoint, newest
from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import Standing, standing
from fastdb.errors import FastDBError, StorageError, first_line, is_out_of_memory, out_of_memory
from fastdb.models.loading import load_scheduler
from fastdb.reporting import Note, format_bytes
from fastdb.runtime.device import Device, available_memory, release_memory
from fastdb.runtime.memory import return_freed_blocks
from fastdb.sessions.events import Emit
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session
from fastdb.training.batches import Batches, Group, every_prompt
from fastdb.training.divergence import Divergence, explained
from fastdb.training.fixed_loss import fixed_loss
from fastdb.training.loop import Loop
from fastdb.training.memory_estimate import needed, predicted_shares
from fastdb.training.memory_ladder import Alternative, Shortage, alternatives, next_step_down, step_down
from fastdb.training.observers import Observers, Sampler
from fastdb.training.optimizers import make_optimizer
from fastdb.training.prepare import Preparation
from fastdb.training.sample_likeness import sample_likeness
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


@dataclass(frozen=True)
class Ended:
    """The steps done in a stage, and why it ended before its last, as a clause."""

    done: int
    settled: str = ""


def run_stage(name: str, run: StageRun) -> tuple[int, Preparation]:
    """Run a stage from its newest checkpoint; where memory runs out, step down and go on from the same step.

    Returns:
        The steps done in it, and the preparation with the settings that it ended with.

    Raises:
        TrainingError: numbers are not finite, or the memory is too small; the message names a command that works.
    """
    while True:
        ended = _attempt(name, run)
        if isinstance(ended, Ended):
            prepared = run.prepared
            if ended.settled:
                prepared = replace(prepared, session=_with_end(prepared.session, name, ended, run.emit))
            return ended.done, prepared
        # The failed attempt's models are unreferenced only now.
        release_memory()
        prepared = run.prepared
        kind = prepared.device.kind
        session = step_down(prepared.session, ended, kind != "cpu", available_memory(kind), run.emit)
        run = replace(run, prepared=replace(prepared, session=session), stands=_standing_now(name, run))


def _standing_now(name: str, run: StageRun) -> Standing:
    """Return where the stage stands, also if the session's disk is away."""
    session = run.prepared.session
    try:
        return standing(session)
    except StorageError:
        last, _ = newest(session.local_checkpoints, name, session.record.lineages)
        return replace(run.stands, checkpoints={**run.stands.checkpoints, **({name: last} if last else {})})


def _with_end(session: Session, stage: str, ended: Ended, emit: Emit) -> Session:
    """Record in the session that a stage has ended after the steps done, with the reason.

    Extensions that had not begun are not trained either.

    Raises:
        StorageError: the session's folder cannot be written; the next run decides the same.
    """
    config, done = session.config, ended.done
    own = config.unet if stage == "unet" else config.text_encoder
    changes: dict[str, Any] = {f"{stage}.settled_after": [*own.settled_after, done]}
    if stage == "unet":
        begun = [segment.extension for segment in config.unet.segments if segment.extension and segment.start < done]
        changes["unet.extensions"] = [extension.model_dump() for extension in begun]
    emit("note", **asdict(Note("stage settled", f"{stage} step {done} of {own.all_steps}", ended.settled)))
    return session.with_revision(
        config.changed(changes), f"{stage} step {done}", [f"{stage}.settled_after={done}"], ended.settled
    )


def _attempt(name: str, run: StageRun) -> Ended | Shortage:
    """Run a stage with its present settings; a shortage of memory is returned, so that nothing holds its frames.

    If weights and moments were not being changed, they are saved first, so that no step is done again.
    """
    observers, done, share = None, run.stands.done(name), "weights"
    try:
        observers = _build(name, run)
        loop, share = observers.loop, "activations"
        if run.prepared.device.kind != "cpu":
            shares = _shares(loop, run, {})
            listed = ", ".join(f"{share} {format_bytes(size)}" for share, size in shares.items() if size)
            run.emit("note", **asdict(Note("memory predicted", name, listed)), shares=shares)
        _probe(observers, run.prepared)
        run.emit("stage", stage=name, step=done, steps=loop.stage.steps)
        with run.prepared.determinism.applied():
            return _run(observers, done)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        problem = out_of_memory(error, "", "").what
        traceback.clear_frames(error.__traceback__)
    if observers is None:
        return Shortage(name, done, share, problem)
    done, loop = _saved_at(observers, done), observers.loop
    peaks: dict[Any, int] = {}
    return Shortage(name, done, loop.share, problem, _shares(loop, run, peaks), _priced(loop, run, peaks))


def _priced(loop: Loop, run: StageRun, peaks: dict[Any, int]) -> list[tuple[Alternative, int]]:
    """Return the settings past the last step down, each with the memory that it needs."""
    config, prepared = loop.config, run.prepared
    if next_step_down(config, loop.stage.name, prepared.device.kind != "cpu"):
        return []
    offers = alternatives(config, loop.stage.name, prepared.optimizer, prepared.device.precision)
    return [(offer, needed(_shares(loop, run, peaks, offer.settings))) for offer in offers]


def _shares(
    loop: Loop, run: StageRun, peaks: dict[Any, int], settings: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, int]:
    """Return the predicted memory of the stage with other settings; empty if it is unknown."""
    prepared, config = run.prepared, loop.config.changed(settings)
    optimizer = settings.get("optimizer.name", prepared.optimizer)
    try:
        return predicted_shares(loop.stage, config, optimizer, prepared.device, run.groups, peaks)
    except Exception:  # noqa: BLE001 - an unknown share is no reason to end a training
        # Tensors without data are an internal interface of torch, which other versions change.
        return {}


def _saved_at(observers: Observers, start: int) -> int:
    """Save the state after the last whole step, and return the step from which the stage can go on."""
    loop = observers.loop
    loop.optimizer.zero_grad(set_to_none=True)
    if loop.done <= start or loop.changing:
        return start
    try:
        observers.saver.save_now(loop.stage, loop.done, loop.optimizer, loop.accelerator)
    except (StorageError, RuntimeError, MemoryError, OSError):
        return start
    return loop.done


def _build(name: str, run: StageRun) -> Observers:
    """Load a stage with its loop, as it stands, and all that acts on its steps."""
    prepared, stands, groups = run.prepared, run.stands, run.groups
    if prepared.device.kind == "cpu" and prepared.session.config.gradient_checkpointing:
        return_freed_blocks()
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
    likeness = sample_likeness(session, base) if name == "unet" and config.stop.when == "settled" else None
    sampler = Sampler(session, base, prompts, run.emit, likeness)
    weights = raw_files(stands.training_weights, base.folder)
    every = [*prompts, *sampler.prompts, ""]
    stage = prepared.determinism.run(lambda: build_stage(name, base, config, prepared.device, weights, every))
    parameters = [stage.weights(part) for part in stage.trained]
    optimizer = make_optimizer(prepared.optimizer, parameters, config.optimizer)
    optimizer = stage.prepare(accelerator, optimizer)
    if name in stands.checkpoints:
        restore(stands.checkpoints[name], stage, optimizer, accelerator, base.folder, prepared.optimizer)
        _record_conversion(stands.checkpoints[name], run)
    loop = Loop(accelerator, stage, optimizer, batches, schedule, config, optimizer_name=prepared.optimizer)
    saver = Saver(session, run.recipe, prepared.host, run.emit, run.saved)
    fixed = fixed_loss(groups, config, batches.timesteps)
    return Observers(loop, saver, sampler, run.emit, run.stop, run.lease, fixed)


def _record_conversion(checkpoint: Checkpoint, run: StageRun) -> None:
    """Report and record in the session's history that the moments of a checkpoint were converted, if they were."""
    session, before, now = run.prepared.session, checkpoint.state["host"]["optimizer"], run.prepared.optimizer
    if before == now:
        return
    after, change = f"{checkpoint.stage} step {checkpoint.step}", f"optimizer.name {before} -> {now}"
    run.emit("note", **asdict(Note("moments converted", after, f"{before} -> {now}")))
    try:
        recorded = Session.open(session.path).record.revised
        # A run that was killed before its next checkpoint converts them again.
        if not any((entry.after, entry.change) == (after, change) for entry in recorded):
            session.with_revision(session.config, after, [change], "moments converted, the result changes slightly")
    except (FastDBError, OSError) as error:
        run.emit("note", **asdict(Note("history not written", reason=first_line(error))))


def _probe(observers: Observers, prepared: Preparation) -> None:
    """Try the operations of a step and of samples."""
    loop, sampler = observers.loop, observers.sampler
    if _is_probed(prepared.device):
        prepared.determinism.run(loop.probe)
        prepared.determinism.run(lambda: sampler.probe(loop.stage, loop.accelerator))


def _run(observers: Observers, start: int) -> Ended:
    """Run the loop unless the stage has settled; raise the error with a remedy if it diverges."""
    loop, saver = observers.loop, observers.saver
    try:
        try:
            done = start if observers.before_first_step(start) else loop.run(start, observers.after_step)
        finally:
            saver.wait()
        return Ended(done, observers.settled(done))
    except Divergence as divergence:
        scaled = loop.accelerator.scaler is not None
        raise explained(divergence, saver.session, loop.stage.name, loop.losses, scaled) from divergence


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
