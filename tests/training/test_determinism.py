"""A device that lacks a deterministic operation is found before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.errors import TrainingError
from fastdb.runtime.determinism import set_deterministic
from fastdb.sessions.session import Session
from fastdb.training import stage_run
from fastdb.training.batches import Batch
from fastdb.training.loop import Loop
from tests.runtime.test_determinism import Put, strict
from tests.training.conftest import result
from tests.training.test_trainer import Life

SHORT: dict[str, Any] = {
    "text_encoder__steps": 2,
    "unet__steps": 2,
    "prior__class_images": 0,
    "samples__every_steps": 2,
    "samples__steps": 2,
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training needs an operation that torch refuses, in the backward pass; it does not change the gradient."""
    honest = Loop.loss

    def loss(self: Loop, batch: Batch) -> tuple[torch.Tensor, ...]:
        whole, *parts = honest(self, batch)
        return Put.apply(whole.reshape(1)).sum() / 2, *parts

    monkeypatch.setattr(Loop, "loss", loss)


def test_the_probe_allows_the_operation_and_warns_once(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """As on a GPU; all pictures and weights are those of a training that needs no such operation."""
    plain, probed = (make_session(name, **SHORT) for name in ("plain", "probed"))
    assert Life(plain).run() == "finished"
    request.getfixturevalue("refused")
    monkeypatch.setattr(stage_run, "_is_probed", lambda device: True)
    life = Life(probed)
    assert life.run() == "finished"
    assert strict()
    assert life.findings() == [
        "Results match an uninterrupted run only up to rounding: operation put_ does not repeat bit by bit here"
    ]
    assert result(probed) == result(plain)
    names = sorted(path.name for path in plain.samples.glob("*.png"))
    assert len(names) == 2
    assert all((plain.samples / name).read_bytes() == (probed.samples / name).read_bytes() for name in names)


@pytest.mark.full
@pytest.mark.usefixtures("refused")
def test_a_refusal_that_no_probe_found_names_a_setting_that_helps(make_session: Callable[..., Session]) -> None:
    session = make_session("unprobed", **SHORT)
    with pytest.raises(TrainingError, match=r"^training: operation put_ does not .* --set deterministic=false"):
        Life(session).run()
    session = Session.open(session.path)
    session = session.with_config(session.config.changed({"deterministic": "false"}))
    assert Life(session).run() == "finished"
    assert not torch.are_deterministic_algorithms_enabled()
    set_deterministic("cpu", True)
