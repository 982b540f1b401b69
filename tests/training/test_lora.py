"""Training of adapters with the real trainer, its interruptions, and the layers that it moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file

from fastdb.commands import training
from fastdb.config import Config
from fastdb.models.diffusers_folder import open_base_model, weight_file
from fastdb.models.loading import load_part
from fastdb.runtime.device import Device
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.disk_estimate import _checkpoint_bytes
from fastdb.training.methods import method_of
from fastdb.training.stages import build_stage
from tests.models.test_lora import COUNTS, sd15, shapes_of
from tests.training.conftest import SETTINGS, outcome, raw, result
from tests.training.test_kill import killed_and_run_again, points

LORA: dict[str, Any] = {
    "method": "lora",
    "lora__rank": 4,
    "prior__class_images": 0,
    "text_encoder__learning_rate": 1e-2,
    "unet__learning_rate": 1e-2,
    "unet__ema_decay": 0.9,
}
JOINT: dict[str, Any] = {**LORA, "text_encoder__mode": "joint", "lora__dropout": 0.3, "lora__targets": "kohya-conv"}
CASES: dict[str, dict[str, Any]] = {"two stages": LORA, "joint": JOINT}


@pytest.fixture(scope="session")
def learned(trained_once: Callable[..., Session]) -> Callable[[str], Session]:
    """A session of a case, trained without an interruption."""
    return lambda name: trained_once(
        f"lora {name}", lambda session: outcome(process.start(session)), **CASES[name], checkpoints__keep_every=6
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "joint" else pytest.mark.full) for name in CASES]
)
@pytest.mark.parametrize("number", points({7}))
def test_killed_anywhere_equals_never_stopped(
    name: str, number: int, learned: Callable[[str], Session], make_session: Callable[..., Session]
) -> None:
    whole, session = learned(name), make_session(**CASES[name])
    steps = SETTINGS["unet.steps"] + (0 if name == "joint" else SETTINGS["text_encoder.steps"])
    killed_and_run_again(number, session, steps)
    assert result(session) == result(whole)


def test_a_checkpoint_has_adapters_only(learned: Callable[[str], Session], mini: Path) -> None:
    session = learned("two stages")
    for name, part in (("text_encoder-000006", "text_encoder"), ("unet-000010", "unet")):
        file = raw(session, f"{name}/{part}")
        tensors = load_file(file)
        assert {name.rpartition(".")[2] for name in tensors} == {"lora_down", "lora_up", "alpha"}
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        trained, base = load_part(mini, part, weights=file).state_dict(), load_part(mini, part).state_dict()
        changed = {name for name in base if not torch.equal(base[name], trained[name])}
        assert len(changed) == len(tensors) / 3
        assert file.stat().st_size < weight_file(mini, part).stat().st_size / 4


EXTENSION = {"steps": 3, "schedule": "hold", "learning_rate": 1e-3}


@pytest.mark.full
def test_going_back_and_an_extension_are_exact(
    learned: Callable[[str], Session],
    copy_here: Callable[[Session], Session],
    make_session: Callable[..., Session],
) -> None:
    """The last four steps are done again, and others follow: the end is that of a run planned with them."""
    planned = make_session(**JOINT, unet__extensions=[EXTENSION])
    assert training.train(planned) == "finished"
    session = copy_here(learned("joint"))
    assert training.train(session, from_step=6) == "finished"
    assert result(session) == result(learned("joint"))
    session = training.extend(session, EXTENSION["steps"], schedule="hold", learning_rate=1e-3)
    assert training.train(session) == "finished"
    assert result(session) == result(planned)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("stage", "mode"), [("text_encoder", "first"), ("unet", "first"), ("unet", "joint")])
def test_every_adapter_gets_a_gradient(stage: str, mode: str, checkpointing: bool, mini: Path) -> None:
    """With factors that are not zero, as they are from the second step on."""
    config = Config().changed(
        {
            "method": "lora",
            "lora.rank": 2,
            "lora.targets": "kohya-conv",
            "gradient_checkpointing": checkpointing,
            "text_encoder.mode": mode,
        }
    )
    device = Device("cpu", "cpu", "fp32", "")
    built = build_stage(stage, open_base_model(mini), config, device, {}, ["a photo of sks mug"])
    parts = {"text_encoder", "unet"} if mode == "joint" else {stage}
    assert built.trained.keys() == parts
    with torch.no_grad():
        for weight in built.all_weights:
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    conditioning = built.condition(["a photo of sks mug"])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    built.unet(latents, torch.tensor([500]), conditioning).sample.square().mean().backward()
    for part in parts:
        named = method_of(config).weights(built.trained[part])
        assert [name for name, weight in named.items() if weight.grad is None or not weight.grad.any()] == []
        frozen = [weight for name, weight in built.trained[part].named_parameters() if ".lora_" not in name]
        assert not any(weight.requires_grad or weight.grad is not None for weight in frozen)


LIMITS = {
    ("first", "adamw8bit"): 45e6,
    ("first", "adamw"): 85e6,
    ("joint", "adamw8bit"): 60e6,
    ("joint", "adamw"): 115e6,
}


@pytest.mark.parametrize(("mode", "optimizer"), LIMITS)
def test_a_checkpoint_of_stable_diffusion_15_is_small(mode: Any, optimizer: str) -> None:
    config = Config().changed({"method": "lora", "text_encoder.mode": mode})
    method = method_of(config)
    weights = {part: method.counts(part, shapes_of(sd15(part))) for part in ("unet", "text_encoder")}
    assert len(weights["unet"]) == 2 * COUNTS["unet", "kohya"]
    assert _checkpoint_bytes(config, "unet", weights, optimizer)[1] < LIMITS[mode, optimizer]
