"""Random numbers of batches are functions of their address."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from fastdb.training.batches import Batches, Group, every_prompt, generator
from fastdb.training.caches import LatentCache


def batches(size: int = 2, class_size: int = 0, bare: float = 0.0, empty: float = 0.0, **changes: object) -> Batches:
    latents = LatentCache(torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 4, 8, 8), torch.ones(5, 4, 8, 8), 0.5)
    groups = (
        Group(
            "instance",
            latents,
            tuple(f"prompt {number}" for number in range(5)),
            size,
            tuple(f"bare {number}" for number in range(5)) if bare else (),
            bare,
            empty,
        ),
        Group("class", latents, ("a class",) * 5, class_size or size),
    )
    values = {"seed": 3, "stage": "unet", "microbatches": 2, "timesteps": 1000, **changes}
    return Batches(groups, **values)  # type: ignore[arg-type]


def same(one: object, other: object) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


def test_a_batch_depends_on_its_address_alone() -> None:
    expected = batches().at(7, 1)
    torch.manual_seed(99)
    torch.rand(1000)
    fresh = batches()
    for step in range(7):
        fresh.at(step, 0)
    assert same(fresh.at(7, 1), expected)


@pytest.mark.parametrize("change", [{"seed": 4}, {"stage": "text_encoder"}])
def test_another_address_gives_other_noise(change: dict[str, object]) -> None:
    assert not torch.equal(batches(**change).at(7, 1).noise, batches().at(7, 1).noise)


def test_no_two_samples_share_their_noise() -> None:
    drawn = [row for step in range(4) for micro in range(2) for row in batches().at(step, micro).noise]
    seen = {row.numpy().tobytes() for row in drawn}
    assert len(drawn) == 4 * 2 * 4
    assert len(seen) == len(drawn)


def test_two_processes_draw_together_what_one_draws_alone() -> None:
    alone = batches(size=4).at(5, 0)
    pair = [batches(size=2, processes=2, process=process).at(5, 0) for process in range(2)]
    for start, group in ((0, slice(0, 4)), (2, slice(4, 8))):
        together = torch.cat([batch.noise[start : start + 2] for batch in pair])
        assert torch.equal(together, alone.noise[group])


def test_as_many_class_images_as_asked_for_and_the_instance_images_as_before() -> None:
    few, many = batches(size=1).at(5, 1), batches(size=1, class_size=3).at(5, 1)
    assert (len(few.noise), len(many.noise), few.instances, many.instances) == (2, 4, 1, 1)
    assert many.prompts[1:] == ("a class",) * 3
    assert torch.equal(many.noise[0], few.noise[0])
    assert torch.equal(many.latents[0], few.latents[0])
    # An epoch of five class images is five rows, whatever the instance images' count.
    rows = [batches(size=1, class_size=3).at(step, micro) for step in range(5) for micro in range(2)]
    order = [torch.randperm(5, generator=generator(3, "unet", "class", "order", epoch)).tolist() for epoch in range(6)]
    seen = [image for epoch in order for image in epoch]
    latents = torch.cat([batch.latents[1:] for batch in rows])
    drawn = torch.stack([draw_of(row // 6, row // 3 % 2, row % 3, seen[row]) for row in range(30)])
    assert torch.equal(latents, drawn)


def test_captions_are_left_out_in_their_share_of_the_turns_and_nothing_else_changes() -> None:
    kept, dropped, turns = 0, 0, []
    for step in range(100):
        always, sometimes = batches(size=4).at(step, 1), batches(size=4, bare=0.3).at(step, 1)
        assert torch.equal(always.latents, sometimes.latents)
        assert torch.equal(always.noise, sometimes.noise)
        assert torch.equal(always.timesteps, sometimes.timesteps)
        assert sometimes.prompts[4:] == ("a class",) * 4
        for before, now in zip(always.prompts[:4], sometimes.prompts[:4], strict=True):
            assert now in (before, before.replace("prompt", "bare"))
            kept, dropped = kept + (now == before), dropped + (now != before)
            turns.append(now)
    assert abs(dropped / (kept + dropped) - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5
    assert {turn for turn in turns if turn.startswith("bare")} == {f"bare {number}" for number in range(5)}
    assert turns == [turn for step in range(100) for turn in batches(size=4, bare=0.3).at(step, 1).prompts[:4]]
    assert set(every_prompt(batches(bare=0.3).groups)) >= set(turns), "all are embedded beforehand"
    assert batches(size=4, bare=1.0).at(0, 0).prompts[0].startswith("bare")


def test_prompts_are_emptied_in_their_share_of_the_turns_and_nothing_else_changes() -> None:
    """Whether a caption is dropped does not depend on it."""
    turns = []
    for step in range(100):
        without, dropped = batches(size=4, bare=0.3).at(step, 1), batches(size=4, bare=0.3, empty=0.2).at(step, 1)
        assert torch.equal(without.latents, dropped.latents)
        assert torch.equal(without.noise, dropped.noise)
        assert torch.equal(without.timesteps, dropped.timesteps)
        assert dropped.prompts[4:] == ("a class",) * 4
        assert all(now in (before, "") for before, now in zip(without.prompts, dropped.prompts, strict=True))
        turns += zip(without.prompts[:4], dropped.prompts[:4], strict=True)
    emptied = [before for before, now in turns if not now]
    assert abs(len(emptied) / 400 - 0.2) < 4 * (0.2 * 0.8 / 400) ** 0.5
    assert 0.1 < sum(before.startswith("bare") for before in emptied) / len(emptied) < 0.5
    assert "" in every_prompt(batches(empty=0.2).groups)
    assert "" not in every_prompt(batches().groups)
    assert batches(size=4, empty=1.0).at(0, 0).prompts[:4] == ("",) * 4


def draw_of(step: int, microbatch: int, sample: int, image: int) -> torch.Tensor:
    """The latents of a class image, from the address written out."""
    numbers = generator(3, "unet", step, microbatch, "class", sample)
    torch.randint(0, 1000, (), generator=numbers)
    torch.randn(4, 8, 8, generator=numbers)
    return (image + torch.randn(4, 8, 8, generator=numbers)) * 0.5


def test_every_epoch_shows_every_image_once() -> None:
    drawn = [batches(size=1).at(step, micro).prompts[0] for step in range(50) for micro in range(2)]
    epochs = [tuple(drawn[start : start + 5]) for start in range(0, 100, 5)]
    assert all(sorted(epoch) == [f"prompt {number}" for number in range(5)] for epoch in epochs)
    assert len(set(epochs)) > 12


def test_timesteps_are_uniform_and_noise_is_normal() -> None:
    many = [batches(size=8).at(step, micro) for step in range(125) for micro in range(2)]
    steps = torch.cat([batch.timesteps for batch in many]).float()
    noise = torch.cat([batch.noise for batch in many])
    assert 0 <= steps.min() <= 5
    assert 994 <= steps.max() <= 999
    assert abs(steps.mean() - 499.5) < 4 * 288.7 / len(steps) ** 0.5
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 0.01
    prompts = Counter(prompt for batch in many for prompt in batch.prompts[: batch.instances])
    assert max(prompts.values()) - min(prompts.values()) <= 2


def test_latents_keep_the_posteriors_noise() -> None:
    rows = [batches().at(step, 0) for step in range(40)]
    zero = torch.cat([batch.latents[row] for batch in rows for row in range(2) if batch.prompts[row] == "prompt 0"])
    assert abs(zero.std() - 0.5) < 0.05, "std 1 of the posterior times a latent scale of 0.5"


def test_the_generators_numbers_are_pinned() -> None:
    """A change of these numbers makes every checkpoint in the world go on differently."""
    numbers = torch.randint(0, 1000, (4,), generator=generator(0, "unet", 1, 0, "instance", 0)).tolist()
    assert numbers == PINNED


PINNED = [42, 206, 423, 492]
