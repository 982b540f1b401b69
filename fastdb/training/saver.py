"""Checkpoints of a stage's exact state, saved in the background on this machine's disk, and their restoration."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.checkpoints.checkpoint import AVERAGE, FINITE, FORMAT, RAW, Checkpoint
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.compressed_checkpoint import tensors_of
from fastdb.checkpoints.publish import pending, prune_local
from fastdb.checkpoints.publishing_watch import in_time
from fastdb.checkpoints.retention import KEEP
from fastdb.errors import FastDBError, StorageError, first_line
from fastdb.formats.safetensors_file import save_tensors
from fastdb.models.export import largest_magnitude
from fastdb.reporting import Note, format_bytes
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, flush, make_folder
from fastdb.training.divergence import Divergence
from fastdb.training.moment_conversion import convert_moments
from fastdb.training.optimizers import restore_state, state_tensors
from fastdb.training.snapshot import Contents, Snapshot
from fastdb.training.stages import Check, Stage

OPTIMIZER = "optimizer.safetensors"
_RETRY_AFTER = 60.0
"""Seconds until a failed checkpoint is tried again."""
_FULL_DISK_WAIT = 600.0
"""Seconds that training waits for space on this machine's disk while older checkpoints are published."""
_PRUNED_WITHIN = 5.0
"""Seconds that the end of a stage waits until older checkpoints are deleted; the end of the run deletes the rest."""
_LISTED_WITHIN = 60.0
"""Seconds that the session's disk may take to show what is published while training waits for space."""


@dataclass
class Saver:
    """Saves checkpoints of a stage when they are due; calls `saved` after each, in a thread."""

    session: Session
    recipe: dict[str, Any]
    host: dict[str, Any]
    emit: Emit
    saved: Callable[[], None] = lambda: None
    _next: float = field(init=False)
    _snapshot: Snapshot = field(init=False)
    _began: float = field(default_factory=time.monotonic)
    _steps: int = 0
    _preallocated: bool = False
    _pin_failure_reported: bool = False
    _writer: threading.Thread | None = None
    _pruning: threading.Thread | None = None
    _failed: Exception | None = None
    _bug: BaseException | None = None

    def __post_init__(self) -> None:
        self._snapshot = Snapshot()
        self._schedule()

    def after_step(
        self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator, stopping: bool
    ) -> bool:
        """Save a checkpoint if it is due by count or by the clock, or if no step follows; return whether it was due.

        The state is copied and written in the background; if memory is too small for a copy, training waits. A failure
        is reported and tried again a minute later; the last checkpoint of a run is waited for.

        Raises:
            StorageError: the last checkpoint cannot be written; earlier checkpoints are untouched.
        """
        self._steps += 1
        if not stopping and not self._preallocated and self._copies_before(stage.steps, step):
            self._preallocated = True
            self._snapshot.preallocate(self._state(stage, 0, optimizer, accelerator)[0])
        last = stopping or step == stage.steps
        due = last or any(step % every == 0 for every in self._counts()) or time.monotonic() >= self._next
        if due:
            self._save(stage, step, optimizer, accelerator, last)
        return due

    def save_now(self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        """Save a checkpoint without a copy in memory, which is short, and free the memory for copies.

        Raises:
            StorageError: it cannot be written.
        """
        self._save(stage, step, optimizer, accelerator, last=True)
        self.saved()

    def wait(self) -> None:
        """Wait until the checkpoint in the background is on the disk, or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def _counts(self) -> list[int]:
        """Return the numbers of steps after whose multiples a checkpoint is due."""
        config = self.session.config.checkpoints
        return [every for every in (config.every_steps, config.keep_every) if every]

    def _copies_before(self, end: int, step: int) -> bool:
        """Return whether a checkpoint is expected between a step and the last one, which needs no copy in memory."""
        if any((step // every + 1) * every < end for every in self._counts()):
            return True
        now = time.monotonic()
        return now + (now - self._began) / self._steps * (end - 1 - step) >= self._next

    def _schedule(self) -> None:
        self._next = time.monotonic() + self.session.config.checkpoints.every_minutes * 60

    def _save(
        self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator, last: bool
    ) -> None:
        began = time.perf_counter()
        self.wait()
        contents, state = self._state(stage, step, optimizer, accelerator)
        self._schedule()
        copied = None if last else self._copied(contents)
        if last:
            self._snapshot.release()
        if copied is None:
            self._write(stage.name, step, contents, state, began, last)
            if last and self._failed is not None:
                raise self._failed
            return
        blocked = time.perf_counter() - began
        arguments = (stage.name, step, copied, state, began, False, blocked)
        self._writer = threading.Thread(target=self._in_background, args=arguments, name="checkpoint", daemon=True)
        self._writer.start()

    def _copied(self, contents: Contents) -> Contents | None:
        copied = self._snapshot.copy(contents)
        if self._snapshot.pin_failed and not self._pin_failure_reported:
            self._pin_failure_reported = True
            self.emit("note", **asdict(Note("memory not pinned")))
        return copied

    def _in_background(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as bug:  # noqa: BLE001 - a divergence or a bug: raised by `wait` in the training thread
            self._bug = bug

    def _state(
        self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator
    ) -> tuple[Contents, dict[str, Any]]:
        tensors, numbers = state_tensors(optimizer)
        contents = {OPTIMIZER: tensors}
        for part, module in stage.trained.items():
            contents[f"{part}{RAW}"] = stage.method.state(accelerator.unwrap_model(module))
        if stage.average is not None:
            contents[f"{stage.name}{AVERAGE}{RAW}"] = stage.average.state_dict()
        state = {
            "format": FORMAT,
            "lineage": self.session.record.lineage,
            "stage": stage.name,
            "step": step,
            "steps": stage.steps,
            "optimizer": numbers,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "skipped": stage.skipped,
            # JSON has no infinity.
            "losses": [loss if math.isfinite(loss) else sys.float_info.max for loss in stage.losses],
            "checks": [[check.step, dict(check.figures)] for check in stage.checks],
            FINITE: True,
            "host": self.host,
            "recipe": self.recipe,
        }
        return contents, state

    def _write(
        self,
        stage: str,
        step: int,
        contents: Contents,
        state: dict[str, Any],
        began: float,
        last: bool,
        blocked: float | None = None,
    ) -> None:
        """Write a checkpoint; a failure is kept in `_failed`, and reported unless it is the last checkpoint.

        Raises:
            Divergence: it would contain numbers that are not finite; it is not written.
        """

        def write(hidden: Path) -> dict[str, str]:
            hashes = {}
            for name, content in contents.items():
                if tensor := _not_finite(content):
                    raise Divergence(f"{tensor} in {name} is not finite after step {step}, so it was not saved")
                hashes[name] = save_tensors(hidden / name, content)
                flush(hidden / name)
            return hashes

        folder = self.session.local_checkpoints
        try:
            make_folder(folder)
            self._make_room(_bytes_of(contents))
            checkpoint, notes = save_checkpoint(folder, stage, step, state, write)
        except (StorageError, OSError, MemoryError) as error:
            self._failed = error
            self._next = min(self._next, time.monotonic() + _RETRY_AFTER)
            if not last:
                self.emit("note", **asdict(Note("checkpoint not saved", f"{stage} {step}", first_line(error))))
            return
        self._failed = None
        for note in notes:
            self.emit("note", **asdict(note))
        self._prune_beside(last)
        seconds = time.perf_counter() - began
        waited = seconds if blocked is None else blocked
        self.emit(
            "saved",
            stage=stage,
            step=step,
            path=str(checkpoint.path),
            seconds=round(seconds, 3),
            blocked=round(waited, 3),
        )
        if not last:
            self.saved()

    def _prune(self, keep: int = KEEP, *, needed: bool = False) -> list[Note]:
        """Delete the older checkpoints on this machine; the new one is complete, whatever happens to them."""
        try:
            return prune_local(self.session, keep, needed=needed)
        except (OSError, FastDBError) as error:
            return [Note("older checkpoints unread", reason=first_line(error))]

    def _prune_beside(self, last: bool) -> None:
        """Prune in a thread, because what may go follows from the session's disk, which may be slow or hang."""

        def prune() -> None:
            for note in self._prune():
                self.emit("note", **asdict(note))

        if self._pruning is None or not self._pruning.is_alive():
            self._pruning = threading.Thread(target=prune, name="prune", daemon=True)
            self._pruning.start()
        if last:
            self._pruning.join(_PRUNED_WITHIN)

    def _make_room(self, wanted: int) -> None:
        """Wait until this machine's disk has `wanted` bytes free, while older checkpoints may leave it."""
        folder, reported, deadline = self.session.local_checkpoints, False, time.monotonic() + _FULL_DISK_WAIT
        while _free(folder) < wanted and time.monotonic() < deadline:
            with suppress(OSError, FastDBError):
                in_time(lambda: self._prune(keep=1, needed=True), _LISTED_WITHIN)
                if _free(folder) >= wanted or not in_time(lambda: pending(self.session, needed=True), _LISTED_WITHIN):
                    return
            if not reported:
                self.emit("note", **asdict(Note("waiting for disk space", reason=format_bytes(wanted))))
                reported = True
            self.saved()
            time.sleep(1)


def restore(
    checkpoint: Checkpoint,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    base_folder: Path,
    kind: str,
) -> None:
    """Restore the state of the optimizer, the gradient scaler and the average; weights are loaded with the stage.

    Args:
        kind: of the optimizer, "adamw" or "adamw8bit"; moments of the other one are converted.

    Raises:
        CheckpointError: the state belongs to another model, is missing, or is compressed and damaged.
        ModelError: it is compressed, and the base model in `base_folder` cannot be read.
    """
    state = checkpoint.state
    moments, numbers = tensors_of(checkpoint, OPTIMIZER, base_folder), state["optimizer"]
    if state["host"]["optimizer"] != kind:
        moments, numbers = convert_moments(moments, numbers, kind)
    restore_state(optimizer, moments, numbers)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if stage.average is not None:
        average = tensors_of(checkpoint, f"{stage.name}{AVERAGE}{RAW}", base_folder)
        stage.average.restore(average, checkpoint.step)
    stage.skipped = state.get("skipped", 0)
    stage.losses.extend(state.get("losses", ()))
    stage.checks.extend(Check(step, figures) for step, figures in state.get("checks", ()))


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the name of a tensor that contains NaN or infinite numbers, or ""."""
    for name, tensor in tensors.items():
        # In a twentieth of the time of torch's norm of order infinity.
        if tensor.is_floating_point() and largest_magnitude(tensor) == math.inf:
            return name
    return ""


def _bytes_of(contents: Contents) -> int:
    return sum(tensor.nbytes for tensors in contents.values() for tensor in tensors.values())


def _free(folder: Path) -> int:
    with explained(folder):
        return shutil.disk_usage(folder).free
