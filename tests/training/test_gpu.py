"""Exact resume on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from fastdb.runtime.device import choose_device, make_deterministic
from fastdb.sessions.session import Session
from fastdb.training.loop import Loop
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
    make_deterministic(choose_device())
    life = Life(make_session("deterministic", text_encoder__steps=1, unet__steps=1))
    assert life.run() == "finished"
    assert not life.findings()


class Hollow:
    """Stands where the probe needs an optimizer."""

    cleared = 0

    def zero_grad(self, set_to_none: bool) -> None:
        """Count how often the gradients were cleared."""
        assert set_to_none
        self.cleared += 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("foo_cuda does not have a deterministic implementation, but you set\nmore"), "foo_cuda does not"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (RuntimeError("something else"), "something else"),
    ],
)
def test_the_probe_tells_what_the_device_cannot_do(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a GPU does is acted here by the error it raises."""

    class Stage:
        name = "unet"

    class Batches:
        @staticmethod
        def at(step: int, microbatch: int) -> None:
            """No batch is needed."""

    class Accelerator:
        device = torch.device("cpu")

    def fail(self: Loop, batch: None) -> None:
        raise error

    monkeypatch.setattr(Loop, "loss", fail)
    hollow = Hollow()
    loop = Loop(Accelerator(), Stage(), hollow, Batches(), None, None)  # type: ignore[arg-type]
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        said = loop.probe()
    except Exception as raised:  # noqa: BLE001
        said = str(raised)
    finally:
        relaxed = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=before)
    assert told in said
    assert hollow.cleared == 1
    assert relaxed == ("foo_cuda" in told)
