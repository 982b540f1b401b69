"""A stage's exact state: out to a checkpoint, and back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from fastdb.models.files.safetensors_writer import save_tensors
from fastdb.sessions import checkpoints
from fastdb.sessions.checkpoints import Checkpoint
from fastdb.sessions.session import Session
from fastdb.sessions.trained import average_file, weights_file
from fastdb.storage.durable import flush
from fastdb.training.events import Tell
from fastdb.training.optimizers import restore_state, state_tensors
from fastdb.training.stages import Stage

OPTIMIZER = "optimizer.safetensors"


@dataclass
class Saver:
    """Knows when a checkpoint is due, and writes it."""

    session: Session
    recipe: dict[str, Any]
    host: dict[str, Any]
    tell: Tell
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int, steps: int) -> bool:
        """Whether the stage must be saved after `step`: by count, by the clock, or because it is over."""
        config = self.session.config.checkpoints
        late = time.monotonic() - self._last >= config.every_minutes * 60
        counted = step % config.every_steps == 0 or (config.keep_every and step % config.keep_every == 0)
        return step == steps or bool(counted) or late

    def save(self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> Checkpoint:
        """Write a checkpoint of `stage` after `step` steps; older ones go under two newer that verify.

        Raises:
            StorageError: the disk is full, read-only or gone; older checkpoints are untouched.
        """
        began, folder = time.perf_counter(), self.session.checkpoints
        self.session.check_there()
        tensors, numbers = state_tensors(optimizer)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        state = {
            "stage": stage.name,
            "step": step,
            "steps": stage.steps,
            "optimizer": numbers,
            "scaler": scaler,
            "host": self.host,
            "recipe": self.recipe,
        }

        def write(hidden: Path) -> dict[str, str]:
            contents = {OPTIMIZER: tensors}
            for part, module in stage.trained.items():
                contents[weights_file(part)] = accelerator.unwrap_model(module).state_dict()
            if stage.average is not None:
                contents[average_file(stage.name)] = stage.average.state_dict()
            meant = {}
            for name, content in contents.items():
                meant[name] = save_tensors(hidden / name, content)
                flush(hidden / name)
            return meant

        checkpoint, said = checkpoints.save(folder, stage.name, step, state, write)
        said += checkpoints.prune(folder, stage.name, self.session.config.checkpoints.keep_every)
        self._last = time.monotonic()
        for line in said:
            self.tell("warning", message=line)
        seconds = round(time.perf_counter() - began, 3)
        self.tell("saved", stage=stage.name, step=step, path=str(checkpoint.path), seconds=seconds)
        return checkpoint


def restore(checkpoint: Checkpoint, stage: Stage, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Put back the optimizer's, the gradient scaler's and the average's state; the weights were loaded with the stage.

    Raises:
        CheckpointError: the state belongs to another model.
    """
    state = checkpoint.state
    restore_state(optimizer, load_file(checkpoint.path / OPTIMIZER), state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if stage.average is not None:
        stage.average.restore(load_file(checkpoint.path / average_file(stage.name)), checkpoint.step)
