"""The prediction of a stage's memory, held against what training takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.config import Config
from fastdb.models.loading import load_part
from fastdb.models.resolve import resolve_base
from fastdb.runtime.device import Device
from fastdb.runtime.isolation import environment
from fastdb.sessions.session import Session
from fastdb.training.batches import Group
from fastdb.training.caches import LatentCache
from fastdb.training.memory_estimate import _BLOCKS, _HEAP, _Meter, needed, predicted_shares
from fastdb.training.stages import Stage

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"
CPU = Device("cpu", "cpu", "fp32", "")


@pytest.fixture(scope="module")
def stage() -> Any:
    """mini's UNet stage."""
    return load_part(resolve_base("mini").folder, "unet").train()


def shares(unet: Any, **settings: Any) -> dict[str, int]:
    config = Config().changed({"resolution": 64, **{name.replace("__", "."): each for name, each in settings.items()}})
    latents = LatentCache(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), 1.0)
    stage = Stage("unet", {"unet": config.unet}, {"unet": unet}, unet, lambda *_: torch.zeros(1, 77, 64))
    return predicted_shares(stage, config, "adamw", CPU, [Group("instance", latents, ("",), config.batch_size)])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_without_data_takes_what_a_real_one_takes(checkpointing: bool, stage: Any) -> None:
    """To a hundredth; operations that a CPU composes of others differ."""
    predicted = shares(stage, gradient_checkpointing=checkpointing)
    (stage.enable_gradient_checkpointing if checkpointing else stage.disable_gradient_checkpointing)()
    stage.zero_grad(set_to_none=True)
    with _Meter() as meter:
        made = stage(torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, 64))[0]
        made.square().mean().backward()
    factor = _BLOCKS if checkpointing else _HEAP
    assert meter.peak == pytest.approx((predicted["activations"] + predicted["gradients"]) / factor, rel=0.01)


def test_a_prediction_leaves_the_random_state_and_the_models_alone(stage: Any) -> None:
    torch.manual_seed(1)
    before, weights = torch.get_rng_state(), [weight.clone() for weight in stage.parameters()]
    stage.zero_grad(set_to_none=True)
    shares(stage)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(stage.parameters(), weights, strict=True))
    assert all(weight.grad is None for weight in stage.parameters())


@pytest.mark.full
def test_settings_that_save_memory_lower_the_prediction(stage: Any) -> None:
    plain = shares(stage, batch_size=2, resolution=512)
    fused = {"optimizer__max_grad_norm": 0, "optimizer__fused_backward_pass": True}
    for settings in ({"gradient_checkpointing": True}, {"split_batches": True}, {"resolution": 64}, fused):
        assert needed(shares(stage, **{"batch_size": 2, "resolution": 512, **settings})) < needed(plain), settings


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux reports the peak of a process")
def test_the_prediction_is_near_the_peak_of_a_trainer(make_session: Callable[..., Session]) -> None:
    """Within 15 %; `benchmarks/memory.py` holds eight settings to 10 % on a quiet machine."""
    session = make_session(
        "peak",
        text_encoder__steps=0,
        unet__steps=4,
        prior__class_images=0,
        resolution=128,
        checkpoints__every_steps=2,
    )
    program = [sys.executable, str(BENCHMARK), "--measure", str(session.path)]
    done = subprocess.run(program, env=environment(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert sum(figures["shares"].values()) == pytest.approx(figures["peak"], rel=0.15)
    assert figures["seconds"] < 10
