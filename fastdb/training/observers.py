"""What happens after a step: a report, a checkpoint or a sample when due, and an end when one was asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fastdb.sessions.events import Emit
from fastdb.sessions.lease import Guard
from fastdb.training.checkpointing import Saver
from fastdb.training.loop import Loop, StepReport
from fastdb.training.samples import Sampler


@dataclass(frozen=True)
class Observers:
    """Watches one stage's loop; the order matters: report, save, sample."""

    loop: Loop
    saver: Saver
    sampler: Sampler
    emit: Emit
    stop: threading.Event
    lease: Guard = field(default_factory=Guard)

    def after_step(self, report: StepReport) -> bool:
        """Do what is due after a step; says whether to stop.

        Raises:
            StorageError: the last checkpoint cannot be written on this machine; earlier ones are untouched.
        """
        stage, accelerator = self.loop.stage, self.loop.accelerator
        if not accelerator.is_main_process:
            return self.stop.is_set()
        self._report(report)
        stopping = self.stop.is_set()
        if not stopping and report.step < stage.steps:
            self.saver.make_ready(stage, self.loop.optimizer, accelerator)
        if stopping or self.saver.due(report.step, stage.steps):
            last = stopping or report.step == stage.steps
            self.saver.save(stage, report.step, self.loop.optimizer, accelerator, last)
            # Or it was asked to stop, or lost the session, while it saved: this step is safe.
            stopping = self.stop.is_set()
        if not stopping and self.sampler.due(report.step, stage.steps) and self.lease.holds():
            self.sampler.make(stage, report.step, accelerator)
        return stopping

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
