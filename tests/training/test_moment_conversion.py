"""A stage whose optimizer changes in the middle continues from its step with converted moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load, load_file

from fastdb.checkpoints.publisher_process import Publisher
from fastdb.config import OptimizerConfig
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training import optimizers
from fastdb.training.moment_conversion import convert_moments
from fastdb.training.optimizers import make_optimizer, restore_state, state_tensors
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
SHORT: dict[str, Any] = {"text_encoder__steps": 0, "unet__steps": 4, "prior__class_images": 0}
KINDS = ("adamw", "adamw8bit")


@pytest.fixture(autouse=True)
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer of this process starts no publisher, which would outlive its failure and hold the session's lock."""
    monkeypatch.setattr(Publisher, "wake", lambda self: None)


def trained(kind: str, steps: int) -> tuple[list[Any], Any]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((70, 100), (10,), (4097,))]
    optimizer = make_optimizer(kind, [weights], OptimizerConfig())
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights, optimizer


@pytest.mark.parametrize("by", ["torch", "bitsandbytes"])
@pytest.mark.parametrize(("before", "after"), [KINDS, KINDS[::-1]], ids=["to 8 bits", "to 32 bits"])
def test_converted_moments_are_a_state_of_the_other_optimizer(
    before: str, after: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "torch":
        monkeypatch.setattr(optimizers, "fault_of_bitsandbytes", lambda kind: "bitsandbytes does not work (broken)")
    else:
        pytest.importorskip("bitsandbytes")
    tensors, numbers = convert_moments(*state_tensors(trained(before, 5)[1]), after)
    weights, other = trained(after, 5)
    expected, steps = state_tensors(other)
    assert {name: (value.dtype, value.shape) for name, value in tensors.items()} == {
        name: (value.dtype, value.shape) for name, value in expected.items()
    }
    assert numbers == steps
    restore_state(other, tensors, numbers)
    # The moments are those of the first optimizer up to the rounding of 8 bits.
    (moments, _), (kept, _) = convert_moments(tensors, numbers, "adamw"), state_tensors(trained("adamw", 5)[1])
    moments = tensors if after == "adamw" else moments
    for name, value in kept.items():
        assert torch.allclose(moments[name], value, atol=0.02 * float(value.abs().max())), name
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    other.step()


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(*KINDS, id="to 8 bits"), pytest.param(*KINDS[::-1], id="to 32 bits", marks=pytest.mark.full)],
)
def test_a_stage_continues_from_its_step_with_the_other_optimizer(before: str, after: str, make_session: Made) -> None:
    whole = make_session("whole", **SHORT, optimizer__name=before)
    assert Life(whole).run() == "finished"
    ends = []
    for name, stops in (("changed", []), ("again", [3])):
        session = make_session(name, **SHORT, optimizer__name=before)
        assert Life(session, until=at("unet", 2)).run() == "stopped"
        session = session.with_config(session.config.changed({"optimizer.name": after}))
        for step in stops:
            assert Life(session, until=at("unet", step)).run() == "stopped"
        life = Life(session)
        assert life.run() == "finished"
        ends.append(result(session))
        if not stops:
            assert [event["step"] for event in life.said("step")] == [3, 4], "no step is done again"
            text = f"Converted the optimizer's moments after unet step 2 ({before} -> {after})"
            assert any(finding.startswith(text) for finding in life.findings())
        assert [str(entry) for entry in Session.open(session.path).record.revised] == [
            f"after unet step 2: optimizer.name {before} -> {after} (moments converted, the result changes slightly)"
        ]
    assert ends[0] == ends[1], "it resumes to the bit after the change too"
    mine, theirs = (load(files["unet-000004/unet.safetensors"]) for files in (ends[0], result(whole)))
    base = load_file(weight_file(ensure_base(whole).folder, "unet"))
    difference = sum(float((mine[name] - theirs[name]).abs().sum()) for name in mine)
    moved = sum(float((theirs[name] - base[name].float()).abs().sum()) for name in mine)
    assert 0 < difference < 0.05 * moved, difference / moved


def test_a_stage_goes_on_with_the_optimizer_it_began_with(make_session: Made) -> None:
    session = make_session("kinds", **SHORT, optimizer__name="adamw8bit")
    assert Life(session, until=at("unet", 2)).run() == "stopped"
    life = Life(session.with_config(session.config.changed({"optimizer.name": "auto"})))
    assert life.run() == "finished"
    plan = life.said("plan")[0]
    assert (plan["optimizer"], plan["optimizer_reason"]) == ("adamw8bit", "the stage began with it")
