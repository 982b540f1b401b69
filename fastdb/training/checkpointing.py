"""A stage's exact state: out to a checkpoint on this machine's disk, in the background, and back."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.checkpoints.checkpoint import AVERAGE, FORMAT, RAW, Checkpoint
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.compressed_checkpoint import tensors_of
from fastdb.checkpoints.publish import pending, prune_local
from fastdb.errors import StorageError
from fastdb.formats.safetensors_file import save_tensors
from fastdb.reporting import format_bytes
from fastdb.sessions.events import Emit
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, flush, make_folder
from fastdb.training.optimizers import restore_state, state_tensors
from fastdb.training.snapshot import Contents, Snapshot
from fastdb.training.stages import Stage

OPTIMIZER = "optimizer.safetensors"
AGAIN_AFTER = 60.0
"""Seconds until a checkpoint that could not be written is tried again."""
FULL_DISK_WAIT = 600.0
"""Seconds that training waits for room on this machine's disk while checkpoints leave it."""


@dataclass
class Saver:
    """Knows when a checkpoint is due, and writes it; `saved` is called after each, in a thread of its own."""

    session: Session
    recipe: dict[str, Any]
    host: dict[str, Any]
    emit: Emit
    saved: Callable[[], None] = lambda: None
    _next: float = field(init=False)
    _snapshot: Snapshot = field(default_factory=Snapshot)
    _ready: bool = False
    _writer: threading.Thread | None = None
    _failed: Exception | None = None
    _bug: BaseException | None = None

    def __post_init__(self) -> None:
        self._next = time.monotonic() + self._interval

    @property
    def _interval(self) -> float:
        return self.session.config.checkpoints.every_minutes * 60

    def due(self, step: int, steps: int) -> bool:
        """Whether the stage must be saved after `step`: by count, by the clock, or because it is over."""
        config = self.session.config.checkpoints
        counted = step % config.every_steps == 0 or (config.keep_every and step % config.keep_every == 0)
        return step == steps or bool(counted) or time.monotonic() >= self._next

    def make_ready(self, stage: Stage, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        """See to it, in the background, that the first save need not wait for memory; a step must have been made."""
        if not self._ready:
            self._ready = True
            self._snapshot.make_ready(self._state(stage, 0, optimizer, accelerator)[0])

    def save(
        self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator, last: bool = False
    ) -> None:
        """Save `stage` after `step` steps on this machine's disk.

        The state is copied and written in the background; where memory is too small for that, training waits. What
        fails is told, and tried again a minute later; `last` says that no more steps come, and waits until it is there.

        Raises:
            StorageError: the last one cannot be written; checkpoints made before are untouched.
        """
        began = time.perf_counter()
        self.wait()
        contents, state = self._state(stage, step, optimizer, accelerator)
        self._next = time.monotonic() + self._interval
        copied = None if last else self._snapshot.of(contents)
        if last:
            self._snapshot = Snapshot()
        if copied is None:
            self._write(stage.name, step, contents, state, began, last)
            if last and self._failed is not None:
                raise self._failed
            return
        blocked = time.perf_counter() - began
        arguments = (stage.name, step, copied, state, began, False, blocked)
        self._writer = threading.Thread(target=self._in_background, args=arguments, name="checkpoint", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Wait until what is being written is on the disk, or has failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._bug is not None:
            raise self._bug

    def _in_background(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as bug:  # noqa: BLE001 - a bug: raised by `wait`, where training sees it
            self._bug = bug

    def _state(
        self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator
    ) -> tuple[Contents, dict[str, Any]]:
        tensors, numbers = state_tensors(optimizer)
        contents = {OPTIMIZER: tensors}
        for part, module in stage.trained.items():
            contents[f"{part}{RAW}"] = accelerator.unwrap_model(module).state_dict()
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
        """Write a checkpoint; what fails is kept in `_failed`, and told unless it is the last."""

        def write(hidden: Path) -> dict[str, str]:
            meant = {}
            for name, content in contents.items():
                meant[name] = save_tensors(hidden / name, content)
                flush(hidden / name)
            return meant

        folder = self.session.local_checkpoints
        try:
            make_folder(folder)
            self._make_room(sum(tensor.nbytes for tensors in contents.values() for tensor in tensors.values()))
            checkpoint, notes = save_checkpoint(folder, stage, step, state, write)
        except (StorageError, OSError) as error:
            self._failed = error
            self._next = min(self._next, time.monotonic() + AGAIN_AFTER)
            if not last:
                reason = str(error).splitlines()[0]
                self.emit("warning", message=f"step {step} could not be saved, and training goes on: {reason}")
            return
        self._failed = None
        for note in (*notes, *prune_local(self.session)):
            self.emit("note", **asdict(note))
        seconds = time.perf_counter() - began
        waited = seconds if blocked is None else blocked
        told = {"seconds": round(seconds, 3), "blocked": round(waited, 3)}
        self.emit("saved", stage=stage, step=step, path=str(checkpoint.path), **told)
        if not last:
            self.saved()

    def _make_room(self, wanted: int) -> None:
        """Wait until `wanted` bytes are free on this machine's disk, while there is something that may leave it."""
        folder, told, until = self.session.local_checkpoints, False, time.monotonic() + FULL_DISK_WAIT
        while self._free(folder) < wanted and time.monotonic() < until:
            prune_local(self.session, keep=1)
            if self._free(folder) >= wanted:
                return
            with suppress(StorageError):
                if not pending(self.session):
                    return
            if not told:
                self.emit(
                    "warning",
                    message=f"this machine's disk has no room for a checkpoint of {format_bytes(wanted)}: "
                    "training waits until earlier ones are in the session's folder",
                )
                told = True
            self.saved()
            time.sleep(1)

    @staticmethod
    def _free(folder: Path) -> int:
        with explained(folder):
            return shutil.disk_usage(folder).free


def restore(
    checkpoint: Checkpoint,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    base_folder: Path,
) -> None:
    """Put back the optimizer's, the gradient scaler's and the average's state; the weights were loaded with the stage.

    Raises:
        CheckpointError: the state belongs to another model, is not there, or is packed and damaged.
        ModelError: it is packed, and the base model in `base_folder` cannot be read.
    """
    state = checkpoint.state
    restore_state(optimizer, tensors_of(checkpoint, OPTIMIZER, base_folder), state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if stage.average is not None:
        average = tensors_of(checkpoint, f"{stage.name}{AVERAGE}{RAW}", base_folder)
        stage.average.restore(average, checkpoint.step)
