"""The running average of the UNet's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file

from fastdb.checkpoints.export_parts import export_parts
from fastdb.checkpoints.progress import standing
from fastdb.inference.open_model import open_source
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training.ema import Average
from tests.training.conftest import raw, result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
STEPS = 6
AVERAGED: dict[str, Any] = {
    "text_encoder__steps": 0,
    "unet__steps": STEPS,
    "unet__learning_rate": 5e-3,
    "unet__ema_decay": 0.3,
    "prior__class_images": 0,
}
SAMPLED: dict[str, Any] = {"samples__every_steps": STEPS, "samples__steps": 4, "samples__guidance": 1.0}


@pytest.fixture(scope="module")
def averaged(make_session: Made) -> Session:
    """A session of six steps, each of whose checkpoints was kept."""
    session = make_session("averaged", **AVERAGED, **SAMPLED, checkpoints__keep_every=1)
    life = Life(session)
    assert life.run() == "finished"
    assert life.said("plan")[0]["ema_decay"] == 0.3
    return Session.open(session.path)


def test_the_average_matches_its_formula_at_every_step(averaged: Session) -> None:
    """By hand in 64 bits: the decay is 0, 2/11, 3/12, 4/13, then the 0.3 that is set."""
    average: dict[str, Any] = {}
    for step in range(1, STEPS + 1):
        folder = f"unet-{step:06d}"
        weights = {name: value.double() for name, value in load_file(raw(averaged, f"{folder}/unet")).items()}
        decay = min(0.3, step / (step + 9)) if step > 1 else 0.0
        average = {name: decay * average.get(name, 0.0) + (1 - decay) * value for name, value in weights.items()}
        kept = load_file(raw(averaged, f"{folder}/unet_ema"))
        assert set(kept) == set(average)
        for name, value in kept.items():
            assert value.dtype == torch.float32
            assert torch.allclose(value.double(), average[name], rtol=1e-5, atol=1e-7), (step, name)
    last = load_file(raw(averaged, f"unet-{STEPS:06d}/unet"))
    assert any(not torch.allclose(value, kept[name], rtol=1e-4) for name, value in last.items())


def test_the_average_does_not_change_training(averaged: Session, make_session: Made) -> None:
    plain = make_session("plain", **{**AVERAGED, "unet__ema_decay": 0.0})
    assert Life(plain).run() == "finished"
    mine = result(averaged)
    del mine[f"unet-{STEPS:06d}/unet_ema.safetensors"]
    assert mine == result(plain)


def test_the_average_is_that_of_diffusers_to_the_bit() -> None:
    module, numbers = torch.nn.Linear(37, 41), torch.Generator().manual_seed(0)
    averages = [Average(module, 0.9), Average(module, 0.9, on_cpu=True)]
    reference = EMAModel(module.parameters(), decay=0.9)
    for _ in range(40):
        with torch.no_grad():
            for weights in module.parameters():
                weights.add_(torch.randn(weights.shape, generator=numbers), alpha=0.1)
        reference.step(module.parameters())
        for average in averages:
            average.update()
    assert reference.cur_decay_value == 40 / 49
    for average in averages:
        state = average.state_dict()
        for name, expected in zip(("weight", "bias"), reference.shadow_params, strict=True):
            assert torch.equal(state[name], expected)


@pytest.mark.parametrize(
    "switch", [pytest.param(False, marks=pytest.mark.full, id="throughout"), pytest.param(True, id="from step 4")]
)
def test_on_the_cpu_it_is_the_same_to_the_bit(switch: bool, averaged: Session, make_session: Made) -> None:
    """Also if it moves there in the middle, as it does to make room on a GPU."""
    other = make_session("averaged", **AVERAGED, unet__ema_on_cpu=not switch)
    if switch:
        assert Life(other, until=at("unet", 4)).run() == "stopped"
        other = other.with_config(other.config.changed({"unet.ema_on_cpu": True}))
    life = Life(other)
    assert life.run() == "finished"
    assert life.said("note") == []
    assert result(other) == result(averaged)


def test_going_on_is_exact(averaged: Session, make_session: Made) -> None:
    other = make_session("averaged", **AVERAGED, samples__every_steps=2, samples__steps=2)
    for step in (1, 4):
        assert Life(other, until=at("unet", step)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(other) == result(averaged)


def test_the_average_is_exported_and_drawn(averaged: Session) -> None:
    last = averaged.local_checkpoints / f"unet-{STEPS:06d}"
    stands = standing(averaged)
    assert stands.weights == {"unet": last / "unet_ema.safetensors"}
    assert stands.training_weights == {"unet": last / "unet.safetensors"}
    assert export_parts(averaged, ensure_base(averaged))[0]["unet"] == last / "unet_ema.safetensors"
    sample = np.asarray(Image.open(averaged.samples / f"unet-{STEPS:06d}-1.png")).astype(int)
    source = open_source(averaged, None, None)
    request = source.request("a photo of sks cup", seed=0, steps=4, guidance=1.0)
    engine = source.load()
    drawn = np.asarray(engine.generate(request)[0]).astype(int)
    assert abs(sample - drawn).max() <= 2, "a sample on the way shows what the session's result shows"
    engine._pipeline.unet.load_state_dict(load_file(last / "unet.safetensors"))
    of_the_last_step = np.asarray(engine.generate(request)[0]).astype(int)
    assert abs(sample - of_the_last_step).max() > 4


def test_without_it_the_last_weights_are_the_result(straight: Session) -> None:
    stands = standing(straight)
    assert stands.weights == stands.training_weights
    assert {part: path.name for part, path in stands.weights.items()} == {
        "text_encoder": "text_encoder.safetensors",
        "unet": "unet.safetensors",
    }
