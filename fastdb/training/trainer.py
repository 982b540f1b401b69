"""The trainer: everything one life of it does, from the session it opens to the end it reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.checkpoints.checkpoint import clear_unfinished, newest
from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import STAGES, Standing, standing, steps_of
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.errors import FastDBError, StorageError, TrainingError
from fastdb.runtime.device import release_memory
from fastdb.sessions.events import Emit
from fastdb.sessions.file_hashes import changes
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session
from fastdb.training.batches import Batches, Group
from fastdb.training.checkpointing import Saver, restore
from fastdb.training.loop import Loop
from fastdb.training.observers import Observers
from fastdb.training.optimizers import make_optimizer
from fastdb.training.preflight import check_recipes, check_resume, make_recipe
from fastdb.training.prepare import Preparation, image_groups, look, prior_images, settle, tell_long_prompts
from fastdb.training.samples import Sampler
from fastdb.training.stages import build_stage


@dataclass(frozen=True)
class Trainer:
    """Trains a session from where it stands. `stop` may be set by a signal at any time.

    Only the one process that holds the session's lock may run this; `lease` says whether the session is still its own.
    """

    session: Session
    emit: Emit
    stop: threading.Event
    leave: threading.Event = field(default_factory=threading.Event)
    """Set where even what is saved is not to be waited for: it is published in the background then."""
    lease: Guard = field(default_factory=Guard)

    def run(self) -> str:
        """Train until everything is done or `stop` is set; returns "finished" or "stopped".

        Raises:
            FastDBError: training cannot start or go on; checkpoints made so far are good.
            SessionBusy: another machine has taken the session over.
        """
        session = self.session
        self.lease.check()
        clear_unfinished(session.local_checkpoints)
        prepared, stands, plan = look(session, self.emit)
        # A later stage's checkpoint is among them even where an earlier stage has to go on first.
        check_resume(session, prepared.images)
        check_recipes(stands.checkpoints.values(), make_recipe(session, prepared.images, None), session.name)
        publisher = Publisher(session, prepared.base.folder, self.emit, self.lease)
        if plan.stage is None:
            publisher.finish(self.leave.is_set)
            return "finished"
        publisher.wake_if_pending()
        settle(prepared, stands, self.emit)
        with want_of_memory_explained():
            prior = prior_images(prepared, self.emit, lambda: self.stop.is_set() or not self.lease.holds())
        self.lease.check()
        if self.stop.is_set():
            return "stopped"
        if prior and stands.last is None:
            # From the first checkpoint on the recipe holds their hashes.
            for note in changes(session.path, within=[session.class_images.name]):
                self.emit("note", kind=note.kind, subject=note.subject, reason=note.reason)
        recipe = make_recipe(session, prepared.images, prior)
        check_recipes(stands.checkpoints.values(), recipe, session.name)
        session = session.with_run_begun(plan.begins)
        try:
            with want_of_memory_explained():
                groups = image_groups(prepared, prior, self.emit)
                outcome = self._stages(prepared, stands, recipe, groups, publisher)
            leaving = self.leave if outcome == "stopped" else self.stop
            publisher.finish(lambda: leaving.is_set() or self.leave.is_set())
        except Exception as error:
            # On a full disk the history cannot be written either, and the first fault is the one to tell.
            with suppress(FastDBError):
                self.lease.check()
                session.with_run_ended("failed" if isinstance(error, FastDBError) else "crashed")
            raise
        self.lease.check()
        session.with_run_ended(outcome)
        return outcome

    def _stages(
        self,
        prepared: Preparation,
        stands: Standing,
        recipe: dict[str, Any],
        groups: tuple[Group, ...],
        publisher: Publisher,
    ) -> str:
        """Run each stage that is not over."""
        tell_long_prompts(prepared, groups, self.emit)
        for name in STAGES:
            steps = steps_of(prepared.session, name)
            if stands.done(name) >= steps:
                continue
            if self.stop.is_set():
                return "stopped"
            done = self._stage(name, prepared, stands, recipe, groups, publisher)
            # All that the stage held is free again before the next one loads.
            release_memory()
            if done < steps:
                return "stopped"
            self.lease.check()
            stands = self._now(name, prepared.session, stands)
            check_recipes(stands.checkpoints.values(), recipe, prepared.session.name)
            if stands.done(name) < steps:
                raise TrainingError(
                    "its last checkpoint does not verify when read back",
                    where=f"{name} stage",
                    fix="Check the disk and run the same command again.",
                )
        return "finished"

    @staticmethod
    def _now(ended: str, session: Session, before: Standing) -> Standing:
        """Where training stands when a stage has ended: the next begins from what lies on the disk, whether this
        process wrote it or another.
        """
        try:
            return standing(session)
        except StorageError:
            # The session's disk is away. What it has of the next stage, if anything, is then trained again.
            last, _ = newest(session.local_checkpoints, ended, session.record.lineage)
            return replace(before, checkpoints={**before.checkpoints, **({ended: last} if last else {})})

    def _stage(
        self,
        name: str,
        prepared: Preparation,
        stands: Standing,
        recipe: dict[str, Any],
        groups: tuple[Group, ...],
        publisher: Publisher,
    ) -> int:
        """Run one stage from its newest checkpoint on; returns the steps done in it."""
        accelerator = new_accelerator(prepared)
        session, config, schedule = prepared.session, prepared.session.config, prepared.noise_schedule()
        batches = Batches(
            groups,
            seed=config.seed,
            stage=name,
            microbatches=config.gradient_accumulation,
            timesteps=schedule.config["num_train_timesteps"],
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        sampler = Sampler(session, prepared.base, batches.prompts, self.emit)
        prompts = [*batches.prompts, *sampler.prompts, ""]
        weights = raw_files(stands.training_weights, prepared.base.folder)
        stage = build_stage(name, prepared.base, config, prepared.device, weights, prompts)
        groups_of_weights = [module.parameters() for module in stage.trained.values()]
        optimizer = make_optimizer(prepared.optimizer, groups_of_weights, config.optimizer)
        optimizer = stage.prepare(accelerator, optimizer)
        if name in stands.checkpoints:
            restore(stands.checkpoints[name], stage, optimizer, accelerator, prepared.base.folder)
        loop = Loop(accelerator, stage, optimizer, batches, schedule, config)
        if prepared.device.kind != "cpu" and (cannot := loop.probe()):
            told = f"a resumed run will equal an uninterrupted one up to rounding, not to the bit: {cannot}"
            self.emit("warning", message=told)
        self.emit("stage", stage=name, step=stands.done(name), steps=stage.steps)
        saver = Saver(session, recipe, prepared.host, self.emit, publisher.wake)
        observers = Observers(loop, saver, sampler, self.emit, self.stop, self.lease)
        try:
            return loop.run(stands.done(name), observers.after_step)
        finally:
            saver.wait()


@contextmanager
def want_of_memory_explained() -> Iterator[None]:
    """Turn the GPU's want of memory into one line with what can be done, all of which a stage may go on with.

    Raises:
        TrainingError: instead of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory is too small for it ({str(error).splitlines()[0][:120]})",
            where="training",
            fix="Set gradient_checkpointing=true and run the same command again; the last checkpoint is still good.",
        ) from error


def new_accelerator(prepared: Preparation) -> Accelerator:
    """A fresh accelerator for one stage.

    One that has served before would bring its gradient scaler's state along, which a run that begins
    between the stages does not have.
    """
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(prepared.device.precision, prepared.device.precision),
        gradient_accumulation_steps=prepared.session.config.gradient_accumulation,
        cpu=prepared.device.kind == "cpu",
    )
