"""The trainer's real process with one part acted, `python -m tests.training.acted_trainer ACT SESSION EVENTS`.

Tests start it in place of `fastdb.training` and kill it as any trainer.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from fastdb.config import Config
from fastdb.training import stage_run
from fastdb.training.loop import Loop

ASKED = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes. Error code 12"
"""As torch words it."""
SHORT_AT = 5
"""Step of the UNet stage at which the act `short_of_memory` begins."""


class Infinite(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(context: Any, value: Any) -> Any:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        return gradient * math.inf


def faulty(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int, Any], Any]) -> None:
    """Let `fault` change the loss of each step, which it gets with the step counted from 1."""
    honest, step = Loop.loss, Loop.run

    def loss(self: Loop, batch: Any) -> Any:
        whole, instance, prior = honest(self, batch)
        number = max(self.losses, default=self.__dict__.get("started", 0)) + 1
        return fault(number, whole), instance, prior

    def run(self: Loop, start: int, after_step: Any) -> int:
        self.__dict__["started"] = start
        return step(self, start, after_step)

    monkeypatch.setattr(Loop, "loss", loss)
    monkeypatch.setattr(Loop, "run", run)


def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every run the gradient scaler of fp16, on the CPU."""
    honest = stage_run._new_accelerator

    def accelerator(prepared: Any) -> Accelerator:
        made = honest(prepared)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        return made

    def unscale(self: Accelerator, optimizer: Any = None) -> None:
        for one in self._optimizers:
            self.scaler.unscale_(one.optimizer)

    monkeypatch.setattr(stage_run, "_new_accelerator", accelerator)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, step: int, enough: Callable[[Config], bool], stage: str = ""
) -> list[str]:
    """Let memory run out in the forward pass of a step, of one stage or of each, until the settings are frugal."""
    honest, failures = Loop._predict, list[str]()

    def predict(self: Loop, batch: Any) -> Any:
        if self.done + 1 == step and self.stage.name in (stage or self.stage.name) and not enough(self.config):
            failures.append("forward")
            raise RuntimeError(ASKED)
        return honest(self, batch)

    monkeypatch.setattr(Loop, "_predict", predict)
    return failures


def _scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip steps 3 and 7 of each stage, as fp16 does where a gradient is not finite."""
    scaled(monkeypatch)
    faulty(monkeypatch, lambda step, loss: Infinite.apply(loss) if step in (3, 7) else loss)


def _short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, SHORT_AT, lambda config: config.split_batches, "unet")


ACTS = {"scaler": _scaler, "short_of_memory": _short_of_memory}

if __name__ == "__main__":
    ACTS[sys.argv.pop(1)](pytest.MonkeyPatch())
    runpy.run_module("fastdb.training", run_name="__main__", alter_sys=True)
