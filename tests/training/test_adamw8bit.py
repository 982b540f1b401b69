"""8-bit moments in plain torch, held against those of bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

from fastdb.checkpoints.progress import standing
from fastdb.config import OptimizerConfig
from fastdb.sessions.session import Session
from fastdb.training import optimizers
from fastdb.training.adamw8bit import BLOCK, AdamW8bit, dequantize, dynamic_map, quantize
from fastdb.training.optimizers import choose_optimizer, make_optimizer, restore_state, state_tensors
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

SETTINGS: dict[str, Any] = {
    "text_encoder__steps": 0,
    "unet__steps": 4,
    "prior__class_images": 0,
    "optimizer__name": "adamw8bit",
}
SIZES = ((70, 100), (10,), (4096,), (4097,))
"""Large and small tensors, with whole and with broken blocks."""


def weights() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]


def take(optimizer: Any, parameters: list[Any], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in parameters:
            weight.grad = torch.randn(weight.shape, generator=generator) * 0.1
        optimizer.step()


def made(kind: Any, parameters: list[Any]) -> Any:
    return kind([{"params": parameters}], lr=1e-3, weight_decay=0.01)


@pytest.mark.parametrize("signed", [True, False])
def test_the_data_type_is_that_of_bitsandbytes(signed: bool) -> None:
    assert torch.equal(dynamic_map(signed), bitsandbytes.functional.create_dynamic_map(signed))


def test_a_number_becomes_the_nearest_value() -> None:
    values = dynamic_map(signed=True)
    numbers = torch.cat([values[::3] * 5, torch.zeros(BLOCK), torch.tensor([3.0])])
    indices, scales = quantize(numbers, values)
    assert scales.tolist() == [5, 3]
    error = (dequantize(indices, scales, values) - numbers).abs()
    assert error[-1] == 0
    assert error.max() < 0.05 * 5


def test_steps_equal_those_of_bitsandbytes_up_to_rounding() -> None:
    ours, theirs = weights(), weights()
    one, other = made(AdamW8bit, ours), made(bitsandbytes.optim.AdamW8bit, theirs)
    take(one, ours, range(20))
    take(other, theirs, range(20))
    for mine, its, before in zip(ours, theirs, weights(), strict=True):
        assert (mine - its).abs().max() < 0.05 * (its - before).abs().max()
        assert (mine - its).abs().mean() < 1e-3 * (its - before).abs().mean()


@pytest.mark.parametrize("begins", [AdamW8bit, bitsandbytes.optim.AdamW8bit], ids=["torch", "bitsandbytes"])
def test_a_state_goes_on_with_either(begins: Any) -> None:
    """The tensors have the same names, types and shapes, as checkpoints contain them."""
    kinds = {AdamW8bit, bitsandbytes.optim.AdamW8bit}
    (other,) = kinds - {begins}
    first = weights()
    start = made(begins, first)
    take(start, first, range(5))
    tensors, numbers = state_tensors(start)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    reached = [weight.detach().clone() for weight in first]
    ends = []
    for kind in (begins, other):
        parameters = [torch.nn.Parameter(weight.clone()) for weight in reached]
        optimizer = made(kind, parameters)
        restore_state(optimizer, {name: tensor.clone() for name, tensor in tensors.items()}, numbers)
        found, _ = state_tensors(optimizer)
        assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
            name: (value.dtype, value.shape) for name, value in tensors.items()
        }
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        take(optimizer, parameters, range(5, 10))
        ends.append(parameters)
    take(start, first, range(5, 10))
    assert all(torch.equal(mine, own) for mine, own in zip(ends[0], first, strict=True)), "its own kind, to the bit"
    for mine, its, before in zip(*ends, reached, strict=True):
        assert (mine - its).abs().max() < 0.05 * (its - before).abs().max()


def test_a_session_goes_on_in_plain_torch_where_bitsandbytes_is_missing(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session("eight", **SETTINGS)
    assert Life(session, until=at("unet", 2)).run() == "stopped"
    monkeypatch.setattr(optimizers, "fault_of_bitsandbytes", lambda kind: "bitsandbytes does not work (broken)")
    life = Life(session)
    assert life.run() == "finished"
    assert "moments by bitsandbytes -> torch" in " ".join(life.findings())
    assert "match only up to rounding" in " ".join(life.findings())
    assert standing(session).checkpoints["unet"].state["host"]["moments by"] == "torch"


@pytest.mark.full
def test_a_session_in_plain_torch_resumes_to_the_bit(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "fault_of_bitsandbytes", lambda kind: "bitsandbytes does not work (broken)")
    alone, stopped = make_session("alone", **SETTINGS), make_session("stopped", **SETTINGS)
    assert Life(alone).run() == "finished"
    assert Life(stopped, until=at("unet", 2)).run() == "stopped"
    assert Life(stopped).run() == "finished"
    assert result(alone) == result(stopped)


def test_a_gpu_without_bitsandbytes_gets_8_bit_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "fault_of_bitsandbytes", lambda kind: "bitsandbytes does not work (broken)")
    assert choose_optimizer("auto", "cuda") == (
        "adamw8bit",
        "moments take 2 bytes per weight instead of 8, in plain torch because bitsandbytes does not work (broken)",
    )
    assert isinstance(make_optimizer("adamw8bit", [weights()], OptimizerConfig()), AdamW8bit)
