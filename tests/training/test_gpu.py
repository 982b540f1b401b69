"""Exact resume on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from fastdb.sessions.session import Session
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_resume_is_exact_on_a_gpu(make_session: Callable[..., Session], optimizer: str, precision: str) -> None:
    """Stopped within each stage, and between them: the gradient scaler must not be carried over."""
    settings = {"text_encoder__steps": 4, "unet__steps": 8, "optimizer__name": optimizer, "precision": precision}
    one, other = (make_session(f"{optimizer}-{precision}{number}", resolution=256, **settings) for number in range(2))
    assert Life(one).run() == "finished"
    assert Life(other, until=at("text_encoder", 2)).run() == "stopped"
    assert Life(other, until=at("text_encoder", 4)).run() == "stopped"
    assert Life(other, until=at("unet", 5)).run() == "stopped"
    last = Life(other)
    assert last.run() == "finished"
    assert not last.findings()
    assert result(one) == result(other)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_resume_is_exact_on_a_gpu_with_both_parts_in_one_stage(
    make_session: Callable[..., Session], precision: str
) -> None:
    settings = {
        "text_encoder__mode": "joint",
        "text_encoder__steps": 3,
        "unet__steps": 6,
        "unet__ema_decay": 0.9,
        "min_snr_gamma": 5.0,
        "precision": precision,
    }
    one, other = (make_session(f"joint-{precision}{number}", resolution=256, **settings) for number in range(2))
    assert Life(one).run() == "finished"
    assert Life(other, until=at("unet", 2)).run() == "stopped"
    assert Life(other, until=at("unet", 4)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)


@pytest.mark.gpu
@on_gpu
def test_no_operation_lacks_a_deterministic_form(make_session: Callable[..., Session]) -> None:
    """Class images, latents, both stages with checkpointing, the optimizer, and samples are tried before a step."""
    settings = {"text_encoder__steps": 1, "unet__steps": 1, "samples__every_steps": 1, "samples__steps": 2}
    for checkpointing in (False, True):
        made = make_session(f"strict{checkpointing}", gradient_checkpointing=checkpointing, **settings)
        life = Life(made)
        assert life.run() == "finished"
        assert not life.findings()
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
