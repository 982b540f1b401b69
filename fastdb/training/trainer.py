"""The trainer of a session, from the plan to the end of the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from fastdb.checkpoints.checkpoint import clear_unfinished, newest
from fastdb.checkpoints.progress import STAGES, Standing, standing, steps_of
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.checkpoints.publishing_watch import in_time
from fastdb.errors import FastDBError, SessionBusy, StorageError, TrainingError, first_line
from fastdb.models.base_identity import configurations
from fastdb.models.registry import MINI
from fastdb.reporting import Note
from fastdb.runtime.determinism import explain_refusal
from fastdb.runtime.device import explain_out_of_memory, release_memory
from fastdb.sessions.events import Emit
from fastdb.sessions.file_hashes import changes, forget_files
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import SAMPLE, Session
from fastdb.training.batches import Group
from fastdb.training.class_images import ClassImage, class_images
from fastdb.training.preflight import check_recipes, check_resume, make_recipe, recipe_settings
from fastdb.training.prepare import Preparation, image_groups, plan_run, progress_events, settle

if TYPE_CHECKING:
    from fastdb.inference.engine import Engine

_OUT_OF_MEMORY = "Close other programs that use its memory and run the same command again; the last checkpoint is good."


@dataclass(frozen=True)
class Trainer:
    """Trains a session from its present state; only for the process that holds the session's lock.

    Attributes:
        stop: set by a signal to save a checkpoint and stop.
        leave: set by a second signal to stop before that is published, which then happens in the background.
        lease: guards the session against trainers on other machines.
        device: the device asked for, such as `cuda:1`; this process sees no other GPU.
    """

    session: Session
    emit: Emit
    stop: threading.Event
    leave: threading.Event = field(default_factory=threading.Event)
    lease: Guard = field(default_factory=Guard)
    device: str = ""

    def run(self) -> str:
        """Train until everything is done or `stop` is set; return "finished" or "stopped".

        Raises:
            FastDBError: training cannot start or resume; checkpoints made so far are good.
            SessionBusy: another machine has taken the session over.
        """
        session = self.session
        self.lease.check()
        clear_unfinished(session.local_checkpoints)
        prepared, stands, plan = plan_run(session, self.emit, self.device)
        if stands.last is None:
            session.check_complete()
        # Includes a checkpoint of a later stage, even if an earlier stage has to be trained first.
        check_resume(session, prepared.images)
        check_recipes(stands.checkpoints.values(), make_recipe(session, prepared.images, None), session.name)
        publisher = Publisher(session, prepared.base.folder, self.emit, self.lease)
        if all(stage.done >= stage.steps for stage in plan.stages.values()):
            publisher.finish(self.leave.is_set)
            return "finished"
        publisher.wake_if_pending()
        settle(prepared, stands, self.emit)
        prior = self._pictures(prepared, stands)
        self.lease.check()
        if self.stop.is_set():
            return "stopped"
        if prior and stands.last is None:
            # After the first checkpoint, its recipe has their hashes.
            for note in changes(session.path, within=[session.class_images.name]):
                self.emit("note", **asdict(note))
        recipe = make_recipe(session, prepared.images, prior)
        check_recipes(stands.checkpoints.values(), recipe, session.name)
        session = session.with_run_begun(plan.begins, configurations(prepared.base.folder))
        try:
            with explain_out_of_memory("training", _OUT_OF_MEMORY), explain_refusal("training"):
                groups = prepared.determinism.run(lambda: image_groups(prepared, prior, self.emit))
                outcome = self._stages(prepared, stands, recipe, groups, publisher)
            leaving = self.leave if outcome == "stopped" else self.stop
            publisher.finish(lambda: leaving.is_set() or self.leave.is_set())
        except Exception as error:
            # On a full disk, or without memory, the history cannot be written either; only the first error is raised.
            with suppress(FastDBError, OSError, MemoryError, RuntimeError):
                self._record_end(session, "failed" if isinstance(error, FastDBError) else "crashed")
            raise
        try:
            self._record_end(session, outcome)
        except SessionBusy:
            raise
        except (OSError, FastDBError) as error:
            # Everything is published; that only the history cannot be written does not change how the run ended.
            self.emit("note", **asdict(Note("history not written", reason=first_line(error))))
        return outcome

    def _record_end(self, session: Session, outcome: str) -> None:
        def record() -> None:
            self.lease.check()
            session.with_run_ended(outcome)

        in_time(record)

    def _pictures(self, prepared: Preparation, stands: Standing) -> list[ClassImage]:
        """Try the token before the first step, and draw the class images, with the untrained base."""

        @cache
        def load_engine() -> Engine:
            # Loads diffusers' pipelines, which a training without class images never needs.
            from fastdb.inference.engine import Engine

            return Engine.from_base(prepared.base, device=prepared.device)

        session = prepared.session
        on_mini = session.record.base_model.folder == MINI
        if stands.last is None and session.config.token.tried and (on_mini or prepared.device.kind == "cuda"):
            self._try_token(prepared, load_engine)
        with explain_out_of_memory("training", _OUT_OF_MEMORY):
            return prepared.determinism.run(lambda: self._class_images(prepared, load_engine))

    def _try_token(self, prepared: Preparation, load_engine: Callable[[], Engine]) -> None:
        """Try the session's token; nothing of it ends a training or changes its result."""
        try:
            # Loads CLIP's classes too.
            from fastdb.training.token_try import try_before_training

            try_before_training(prepared.session, prepared.base, prepared.device, load_engine, self.emit, self._leaving)
        except Exception as error:  # noqa: BLE001 - pictures to look at are no reason to end a training
            self.emit("note", **asdict(Note("token not tried", reason=first_line(error))))
        release_memory()

    def _leaving(self) -> bool:
        return self.stop.is_set() or not self.lease.holds()

    def _class_images(self, prepared: Preparation, load_engine: Callable[[], Engine]) -> list[ClassImage]:
        images, note = class_images(
            prepared.session,
            load_engine,
            progress_events(self.emit, "class images"),
            self._leaving,
        )
        if note is not None:
            self.emit("note", **asdict(note))
        return images

    def _stages(
        self,
        prepared: Preparation,
        stands: Standing,
        recipe: dict[str, Any],
        groups: tuple[Group, ...],
        publisher: Publisher,
    ) -> str:
        """Run each stage that has steps left."""
        self._forget_samples(prepared.session, stands)
        # After the plan: diffusers takes seconds to load.
        from fastdb.training.stage_run import StageRun, run_stage

        for name in STAGES:
            steps = steps_of(prepared.session, name)
            if stands.done(name) >= steps:
                continue
            if self.stop.is_set():
                return "stopped"
            run = StageRun(prepared, stands, recipe, groups, self.emit, self.stop, self.lease, publisher.wake)
            done, prepared = run_stage(name, run)
            # Free the stage's memory before the next stage loads.
            release_memory()
            if (steps := steps_of(prepared.session, name)) > done:
                return "stopped"
            # How a stage has ended is a part of it.
            recipe = {**recipe, "settings": recipe_settings(prepared.session.config)}
            self.lease.check()
            stands = self._standing_after(name, prepared.session, stands)
            check_recipes(stands.checkpoints.values(), recipe, prepared.session.name)
            if stands.done(name) < steps:
                raise TrainingError(
                    "the last checkpoint is damaged when read back",
                    where=f"{name} stage",
                    fix="Check the disk and run the same command again.",
                )
        return "finished"

    @staticmethod
    def _forget_samples(session: Session, stands: Standing) -> None:
        """Take the samples that will be made again off the list of files: they are not edited or damaged."""
        later = [
            path
            for path in session.samples.glob("*.png")
            if (name := SAMPLE.fullmatch(path.stem)) and int(name["step"]) > stands.done(name["stage"])
        ]
        forget_files(session.path, later)

    @staticmethod
    def _standing_after(ended: str, session: Session, before: Standing) -> Standing:
        """Return the state that the next stage begins from, which is read from the disk in every case."""
        try:
            return standing(session)
        except StorageError:
            # The session's disk is away. If it has checkpoints of the next stage, those steps are trained again.
            last, _ = newest(session.local_checkpoints, ended, session.record.lineages)
            return replace(before, checkpoints={**before.checkpoints, **({ended: last} if last else {})})
