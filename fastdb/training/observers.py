"""Actions after a training step: report, checkpoint, samples, and the end if it was requested."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from fastdb.config import SampleConfig
from fastdb.errors import first_line
from fastdb.inference.pictures import parameters, png
from fastdb.inference.request import SEEDS, Request
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.reporting import Note
from fastdb.runtime.determinism import is_refusal
from fastdb.sessions.events import Emit
from fastdb.sessions.lease import Guard
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import make_folder, write_bytes
from fastdb.training.fixed_loss import LIKENESS, FixedLoss, settled
from fastdb.training.loop import Loop, StepReport
from fastdb.training.saver import Saver
from fastdb.training.schedules import segment_at
from fastdb.training.stages import Check, Stage

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdb.inference.engine import Engine


class Sampler:
    """Makes the samples of a stage, pictures of the present result, without touching the training."""

    def __init__(
        self,
        session: Session,
        base: BaseModel,
        prompts: Sequence[str],
        emit: Emit,
        likeness: Callable[[Sequence[Image]], float] | None = None,
    ) -> None:
        self.config: SampleConfig = session.config.samples
        self.prompts = list(self.config.prompts) or list(prompts[:1])
        self._session, self._base, self._emit, self.likeness = session, base, emit, likeness
        self._vae: Any = None

    @torch.no_grad()
    def after_step(self, stage: Stage, step: int, accelerator: Accelerator, lease: Guard) -> None:
        """Write `samples/<stage>-<step>-<number>.png` for each prompt if they are due; report a failure.

        The likeness of the pictures, if they are read, is added to the stage's checks.
        """
        if not self._is_due(stage, step) or not lease.holds():
            return
        pictures: list[Image] = []
        try:
            self._session.check_there()
            self._draw(
                stage,
                accelerator,
                lambda number, prompt, engine: pictures.append(self._write(stage, step, number, prompt, engine)),
            )
            if self.likeness is not None:
                stage.checks.append(Check(step, {LIKENESS: self.likeness(pictures)}))
        except Exception as error:  # noqa: BLE001 - pictures on the way are no reason to end a training
            self._emit("note", **asdict(Note("samples failed", str(step), first_line(error))))

    def catch_up(self, stage: Stage, step: int, accelerator: Accelerator, lease: Guard) -> None:
        """Make the samples of the step that a run resumes from, if a decision needs them and they were not made.

        A checkpoint is saved before the samples of its step.
        """
        read = any(check.step == step and LIKENESS in check.figures for check in stage.checks)
        if step and self.likeness is not None and not read:
            self.after_step(stage, step, accelerator, lease)

    def _is_due(self, stage: Stage, step: int) -> bool:
        every = self.config.every_steps
        return every > 0 and (step % every == 0 or step == stage.steps)

    @torch.no_grad()
    def probe(self, stage: Stage, accelerator: Accelerator) -> None:
        """Draw a sample in one step and discard it, if samples will be made; torch may refuse an operation."""
        if not self.config.every_steps:
            return
        try:
            self._draw(
                stage, accelerator, lambda _, prompt, engine: self._picture(stage, self._request(1, prompt, 1), engine)
            )
        except Exception as error:
            if is_refusal(error):
                raise
            # Other errors are reported when a sample is due.

    def _draw(self, stage: Stage, accelerator: Accelerator, use: Callable[[int, str, Engine], object]) -> None:
        """Call `use` with the number and prompt of each sample, and an engine of the stage's models."""
        # Loads diffusers' pipelines, which a training without samples never needs.
        from fastdb.inference.engine import Engine

        self._vae = self._vae if self._vae is not None else load_part(self._base.folder, "vae", torch.float32)
        self._vae.to(accelerator.device)
        unet = accelerator.unwrap_model(stage.unet)
        engine = Engine.from_parts(
            unet=unet,
            vae=self._vae,
            text_encoder=None,
            tokenizer=load_tokenizer(self._base.folder),
            scheduler=load_scheduler(self._base.folder),
        )
        try:
            with stage.as_exported(accelerator), accelerator.autocast():
                for number, prompt in enumerate(self.prompts, start=1):
                    use(number, prompt, engine)
        finally:
            self._vae.to("cpu")

    def _write(self, stage: Stage, step: int, number: int, prompt: str, engine: Engine) -> Image:
        request = self._request(number, prompt, self.config.steps)
        picture = self._picture(stage, request, engine)
        path = self._session.samples / f"{stage.name}-{step:06d}-{number}.png"
        make_folder(path.parent)
        write_bytes(path, png(picture, parameters(request, request.seed)))
        self._emit("sample", stage=stage.name, step=step, path=str(path), prompt=prompt)
        return picture

    def _request(self, number: int, prompt: str, steps: int) -> Request:
        config, size = self.config, self._session.config.resolution
        # The largest seed is followed by 0.
        seed = (config.seed + number - 1) % SEEDS
        return Request(prompt, seed=seed, steps=steps, guidance=config.guidance, width=size, height=size)

    @staticmethod
    def _picture(stage: Stage, request: Request, engine: Engine) -> Image:
        embedded = stage.condition([request.prompt, ""])
        return engine.generate(request, embeddings=(embedded[0], embedded[1]))[0]


@dataclass(frozen=True)
class Observers:
    """Observes a stage's loop in this order: report, loss on fixed noise, checkpoint, samples.

    Attributes:
        stops: whether the stage ends when it has settled.
    """

    loop: Loop
    saver: Saver
    sampler: Sampler
    emit: Emit
    stop: threading.Event
    lease: Guard = field(default_factory=Guard)
    fixed: FixedLoss = field(default_factory=FixedLoss)

    def before_first_step(self, start: int) -> bool:
        """Make up for what belongs to the step that a run begins from; return whether the stage has settled already."""
        stage, accelerator = self.loop.stage, self.loop.accelerator
        if start == 0 and self.fixed.every:
            self._check(0)
        self.sampler.catch_up(stage, start, accelerator, self.lease)
        return bool(self.settled(start))

    def settled(self, step: int) -> str:
        """Return why the stage ends after a step before its last, as a clause; empty if it does not."""
        stage, config = self.loop.stage, self.loop.config.stop
        own = stage.settings[stage.name]
        decided = step in (0, stage.steps, *own.settled_after)
        if config.when == "off" or decided or not self.fixed.is_due(step, stage.steps):
            return ""
        since = segment_at(own, step - 1).start
        known = [check for check in stage.checks if check.step < step or LIKENESS not in check.figures]
        return settled(known, since, config, pictures=self.sampler.likeness is not None)

    def after_step(self, report: StepReport) -> bool:
        """Act on a step and return whether to stop.

        Raises:
            StorageError: the last checkpoint cannot be written on this machine; earlier checkpoints are untouched.
        """
        stage, accelerator = self.loop.stage, self.loop.accelerator
        if not accelerator.is_main_process:
            return self.stop.is_set()
        self._report(report)
        if self.fixed.is_due(report.step, stage.steps):
            self._check(report.step)
        stopping = self.stop.is_set() or bool(self.settled(report.step))
        if self.saver.after_step(stage, report.step, self.loop.optimizer, accelerator, stopping):
            # If the stop was requested, or the session lost, during the save, this step is safe.
            stopping = stopping or self.stop.is_set()
        if not stopping:
            self.sampler.after_step(stage, report.step, accelerator, self.lease)
        return stopping

    def _check(self, step: int) -> None:
        """Measure and report the loss on fixed noise."""
        stage = self.loop.stage
        figures = self.fixed.measure(self.loop)
        stage.checks.append(Check(step, figures))
        rounded = {name: round(loss, 6) for name, loss in figures.items()}
        self.emit("check", stage=stage.name, step=step, losses=rounded)

    def _report(self, report: StepReport) -> None:
        self.emit(
            "step",
            stage=self.loop.stage.name,
            step=report.step,
            steps=self.loop.stage.steps,
            loss=round(report.loss, 6),
            prior_loss=round(report.prior_loss, 6),
            learning_rate=report.learning_rate,
            seconds=round(report.seconds, 4),
            batch=report.batch,
        )
        scaler = self.loop.accelerator.scaler
        if report.skipped and scaler is not None:
            note = Note("step skipped", f"{self.loop.stage.name} {report.step}", f"{scaler.get_scale():g}")
            self.emit("note", **asdict(note))
