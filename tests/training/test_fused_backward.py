"""Updates within the backward pass give the bits of updates after it, and no checkpoint that is not finite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.config import Config
from fastdb.errors import ConfigError, TrainingError
from fastdb.sessions.session import Session
from fastdb.training import fused_backward, optimizers
from fastdb.training.fused_backward import TOGETHER, FusedBackward
from fastdb.training.memory_estimate import _gradients
from tests.training.conftest import result
from tests.training.test_divergence import Infinite, all_finite, commands, faulty, run
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
Copied = Callable[[Session], Session]
FUSED = {"optimizer.fused_backward_pass": True}
SHORT: dict[str, Any] = {
    "text_encoder__steps": 1,
    "unet__steps": 3,
    "unet__ema_decay": 0.5,
    "prior__class_images": 0,
    "optimizer__max_grad_norm": 0,
    "checkpoints__every_steps": 1,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of mini are applied in several parts; no publisher outlives its failure."""
    monkeypatch.setattr(fused_backward, "TOGETHER", 1 << 20)
    monkeypatch.setattr(Publisher, "wake", lambda self: None)


def fused(session: Session) -> Session:
    return session.with_config(session.config.changed(FUSED))


full = pytest.mark.full


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        pytest.param({}, False, id="adamw"),
        pytest.param({"optimizer__name": "adamw8bit"}, True, id="8 bits in plain torch", marks=full),
        pytest.param({"optimizer__name": "adamw8bit"}, False, id="bitsandbytes", marks=full),
        pytest.param({"text_encoder__mode": "joint"}, False, id="joint", marks=full),
        pytest.param({"gradient_checkpointing": True}, False, id="checkpointing", marks=full),
        pytest.param(
            {"gradient_accumulation": 2, "split_batches": True, "batch_size": 2}, False, id="accumulation", marks=full
        ),
    ],
)
def test_every_bit_is_that_of_updates_after_the_backward_pass(
    settings: dict[str, Any], plain: bool, make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting may change between any two steps."""
    if plain:
        monkeypatch.setattr(optimizers, "fault_of_bitsandbytes", lambda kind: "bitsandbytes does not work (broken)")
    after, within = (make_session(name, **SHORT, **settings) for name in ("after", "within"))
    assert Life(after).run() == "finished"
    assert Life(within, until=at("unet", 1)).run() == "stopped"
    assert Life(fused(within)).run() == "finished"
    assert result(within) == result(after)


def test_few_gradients_exist_at_a_time(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    largest, whole, honest = [0], [0], FusedBackward._add

    def add(self: FusedBackward, weight: Any) -> None:
        held = [weight for weight in self._groups if weight.grad is not None]
        largest[0] = max(largest[0], sum(weight.nbytes for weight in held))
        whole[0] = sum(weight.nbytes for weight in self._groups)
        honest(self, weight)

    monkeypatch.setattr(FusedBackward, "_add", add)
    session = fused(make_session("few", **{**SHORT, "text_encoder__steps": 0, "unet__steps": 1}))
    assert Life(session).run() == "finished"
    assert 0 < largest[0] < whole[0] / 4


def test_the_prediction_counts_the_gradients_that_exist_at_a_time() -> None:
    config, sizes = Config().changed({"optimizer.max_grad_norm": 0}), [100, 1 << 30, 5 << 30]
    assert _gradients(sizes, config) == sum(sizes)
    config = config.changed(FUSED)
    assert _gradients(sizes, config) == TOGETHER + (5 << 30)
    assert _gradients(sizes, config.changed({"gradient_accumulation": 2})) == sum(sizes)


@pytest.mark.parametrize("what", [pytest.param("loss", marks=full), "gradient"])
def test_numbers_that_are_not_finite_end_the_run_before_they_are_saved(
    what: str, make_session: Made, copy_here: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite gradient is applied before an infinite one is known: the last checkpoint counts."""
    settings = {**SHORT, "text_encoder__steps": 0, "unet__ema_decay": 0}
    whole, session = make_session("whole", **settings), fused(make_session("gradient", **settings))
    with monkeypatch.context() as patch:
        spoilt = (lambda loss: loss * math.nan) if what == "loss" else Infinite.apply
        faulty(patch, lambda step, loss: spoilt(loss) if step == 3 else loss)
        with pytest.raises(TrainingError, match=f"the {what} of step 3 is not finite") as error:
            Life(session).run()
    assert all_finite(session)
    assert standing(session).done("unet") == 2
    # If the machine was at fault, the run goes on as if it had not been.
    again = copy_here(session)
    assert Life(again).run() == Life(whole).run() == "finished"
    assert result(again) == result(whole)

    [words] = commands(str(error.value))
    run(words, session)
    assert standing(Session.open(session.path)).done("unet") == 3


def test_it_is_refused_with_clipping(make_session: Made) -> None:
    with pytest.raises(ConfigError) as error:
        Config().changed(FUSED)
    assert str(error.value).startswith(
        "optimizer.fused_backward_pass is True, but a gradient that is applied at once cannot be clipped by the norm "
        "of all gradients: set optimizer.max_grad_norm=0 too"
    )
    session = make_session("clipped", **{**SHORT, "text_encoder__steps": 0, "unet__steps": 1})
    run(["train", "clipped", "--set", "optimizer.fused_backward_pass=true"], session)
    assert Session.open(session.path).config.optimizer.fused_backward_pass
    with pytest.raises(ConfigError, match=re.escape("set optimizer.max_grad_norm=0 too")):
        session.config.changed({**FUSED, "optimizer.max_grad_norm": 1.0})


@pytest.mark.full
def test_gradients_below_the_largest_norm_are_not_changed(make_session: Made) -> None:
    settings = {**SHORT, "text_encoder__steps": 0, "unet__steps": 2}
    unclipped, limited = make_session("unclipped", **settings), make_session("limited", **settings)
    limited = limited.with_config(limited.config.changed({"optimizer.max_grad_norm": 1000}))
    assert Life(unclipped).run() == Life(limited).run() == "finished"
    assert result(unclipped) == result(limited)
