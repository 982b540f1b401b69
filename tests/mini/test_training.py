"""The training loop, whose result does not depend on interruptions or the number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

STEPS = 12


class Toy(nn.Module):
    """A model of words, the last of which never occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        for number, weight in enumerate(self.parameters()):
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(self.token_embedding(words))).sum(1)


@pytest.fixture
def plan(recipe: SimpleNamespace) -> Any:
    return recipe.training.Plan("toy", STEPS, rate=0.05, ema=0.9, warmup=4, weight_decay=0.1, save_every=2, log_every=3)


def loss_of(toy: Toy, recipe: SimpleNamespace, stop: int | None = None) -> Callable[[int], torch.Tensor]:
    """Return a loss that depends only on the step; at step `stop` it is interrupted."""

    def loss(step: int) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        words = torch.randint(4, (6,), generator=recipe.training.generator("toy", step))
        return (toy(words) - words).square().mean()

    return loss


def train(recipe: SimpleNamespace, plan: Any, work: Path, stop: int | None = None, **more: Any) -> list[torch.Tensor]:
    toy = Toy()
    recipe.training.train(plan, work, {"toy": toy}, loss_of(toy, recipe, stop), recipe.training.Workers(), **more)
    return [weight.detach() for weight in toy.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.parametrize("stop", [1, 5, 6, STEPS - 1])
def test_an_interrupted_run_equals_a_straight_run(
    recipe: SimpleNamespace, plan: Any, tmp_path: Path, stop: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    straight = train(recipe, plan, whole)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, plan, stopped, stop)
    assert (stopped / "toy.pt").exists() == (stop >= 2)
    assert same(train(recipe, plan, stopped), straight)
    assert not same(straight, [weight.detach() for weight in Toy().parameters()])
    # Once more there is nothing left to do.
    assert same(train(recipe, plan, stopped, stop=0), straight)
    kept = [tensors_in(torch.load(work / "toy.pt", weights_only=True)) for work in (whole, stopped)]
    assert len(kept[0]) == 5 * 5  # weights, means, and the optimizer's two moments and count, of each
    assert same(*kept)


def tensors_in(state: Any) -> list[torch.Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in inner for tensor in tensors_in(part)]


def test_the_result_is_the_moving_average(recipe: SimpleNamespace, plan: Any, tmp_path: Path) -> None:
    found = train(recipe, plan, tmp_path)
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert same(found, state["means"])
    assert not same(found, state["weights"])
    assert state["step"] == STEPS
    # With a mean that reaches back over nothing, it is the weights.
    (tmp_path / "bare").mkdir()
    bare = train(recipe, replace(plan, ema=0.0), tmp_path / "bare")
    assert same(bare, torch.load(tmp_path / "bare" / "toy.pt", weights_only=True)["weights"])
    assert same(bare, state["weights"])


def test_checks_see_the_averages_and_change_nothing(recipe: SimpleNamespace, plan: Any, tmp_path: Path) -> None:
    (tmp_path / "checked").mkdir()
    seen = []

    def check(modules: dict[str, nn.Module]) -> str:
        seen.append([weight.detach().clone() for weight in modules["toy"].parameters()])
        return "seen"

    straight = train(recipe, plan, tmp_path)
    assert same(train(recipe, plan, tmp_path / "checked", check=check), straight)
    assert len(seen) == 2  # every fifth save, and at the end
    assert same(seen[-1], straight)


def test_the_log_contains_mean_losses_since_the_previous_line(
    recipe: SimpleNamespace, plan: Any, tmp_path: Path
) -> None:
    losses = []
    toy = Toy()
    inner = loss_of(toy, recipe)

    def loss(step: int) -> torch.Tensor:
        value = inner(step)
        losses.append(float(value.detach()))
        return value

    recipe.training.train(replace(plan, steps=11), tmp_path, {"toy": toy}, loss, recipe.training.Workers())
    lines = [json.loads(line) for line in (tmp_path / "toy.log").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 11]
    assert [line["loss"] for line in lines] == pytest.approx(
        [sum(losses[at : at + 3]) / len(losses[at : at + 3]) for at in range(0, 11, 3)], abs=1e-5
    )


def test_words_that_never_occur_do_not_change(recipe: SimpleNamespace, plan: Any, tmp_path: Path) -> None:
    """Identifiers such as `sks` are in no caption; weight decay would shrink them to zero."""
    before, after = Toy().token_embedding.weight.detach(), train(recipe, plan, tmp_path)[0]
    assert torch.allclose(after[4], before[4])
    assert (after[:4] - before[:4]).abs().amin() > 0
    frozen = replace(plan, weight_decay=0.0, name="no decay")
    assert not same(train(recipe, frozen, tmp_path)[1:2], train(recipe, plan, tmp_path)[1:2])


def test_frozen_weights_are_not_trained(recipe: SimpleNamespace, plan: Any, tmp_path: Path) -> None:
    toy = Toy()
    toy.inner.requires_grad_(False)
    before = toy.inner.weight.clone()
    recipe.training.train(plan, tmp_path, {"toy": toy}, loss_of(toy, recipe), recipe.training.Workers())
    assert torch.equal(toy.inner.weight, before)
    assert not torch.equal(toy.norm.weight, Toy().norm.weight)


def test_the_learning_rate_rises_stays_and_falls(recipe: SimpleNamespace) -> None:
    plan = recipe.training.Plan("any", steps=1000, rate=2e-3, ema=0.99, warmup=100, decay_share=0.5)
    assert plan.rate_at(0) == pytest.approx(2e-5)
    assert plan.rate_at(49) == pytest.approx(1e-3)
    assert {plan.rate_at(step) for step in range(99, 501)} == {2e-3}
    assert plan.rate_at(750) == pytest.approx(1e-3)
    assert plan.rate_at(999) == pytest.approx(6e-5)
    assert all(plan.rate_at(step) >= plan.rate_at(step + 1) for step in range(99, 999))


def test_the_learning_rate_follows_its_knots(recipe: SimpleNamespace) -> None:
    plan = recipe.training.Plan("any", steps=100, rate=2.0, ema=0.99, warmup=1, knots=((10, 1.0), (50, 0.5), (90, 0.0)))
    assert [plan.rate_at(step) for step in (0, 10, 30, 50, 70, 90, 99)] == pytest.approx([2, 2, 1.5, 1, 0.5, 0, 0])


def test_a_generator_depends_on_its_address_alone(recipe: SimpleNamespace) -> None:
    def drawn(*address: object) -> list[float]:
        return torch.rand(3, generator=recipe.training.generator(*address)).tolist()

    torch.manual_seed(0)
    first = drawn(0, "vae", 7)
    torch.manual_seed(1)
    assert drawn(0, "vae", 7) == first
    assert (
        len({tuple(drawn(*address)) for address in ((0, "vae", 7), (1, "vae", 7), (0, "unet", 7), (0, "vae", 8))}) == 4
    )


def test_workers_share_evenly_or_raise(recipe: SimpleNamespace) -> None:
    workers, batch = recipe.training.Workers, torch.arange(6)
    assert [workers(rank, 2).share(batch).tolist() for rank in range(2)] == [[0, 2, 4], [1, 3, 5]]
    assert workers().share(batch).tolist() == batch.tolist()
    with pytest.raises(ValueError, match="4 processes cannot share 6 samples evenly"):
        workers(0, 4).share(batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here")
def test_a_gpu_equals_a_cpu_up_to_rounding(recipe: SimpleNamespace, plan: Any, tmp_path: Path) -> None:
    """With an interruption and resume on the GPU."""
    alone, toy = train(recipe, plan, tmp_path / "cpu"), Toy()
    there = recipe.training.Workers(device="cuda")

    def loss(stop: int | None) -> Callable[[int], torch.Tensor]:
        def at(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            words = torch.randint(4, (6,), generator=recipe.training.generator("toy", step)).to("cuda")
            return (toy(words) - words).square().mean()

        return at

    with pytest.raises(KeyboardInterrupt):
        recipe.training.train(plan, tmp_path / "gpu", {"toy": toy}, loss(7), there)
    recipe.training.train(plan, tmp_path / "gpu", {"toy": toy}, loss(None), there)
    assert {weight.device.type for weight in toy.parameters()} == {"cpu"}
    for weight, expected in zip(toy.parameters(), alone, strict=True):
        assert torch.allclose(weight, expected, atol=1e-4)


def test_a_file_is_made_once_and_is_always_complete(recipe: SimpleNamespace, tmp_path: Path) -> None:
    workers, file, calls = recipe.training.Workers(), tmp_path / "some.npy", []

    def broken(new: Path) -> None:
        new.write_text("half")
        raise KeyboardInterrupt

    def make(new: Path) -> None:
        calls.append(new)
        new.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        workers.make_once(file, broken)
    assert not file.exists()
    assert [workers.make_once(file, make).read_text() for _ in range(2)] == ["whole", "whole"]
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["some.npy"]
