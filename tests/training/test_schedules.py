"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from fastdb.config import Config, Extension, RateChange, TextEncoderConfig, UNetConfig
from fastdb.errors import ConfigError
from fastdb.training.schedules import default_peak, peak_at, rate_at, with_rates_from

PEAKS = st.floats(1e-9, 0.1)
EXTENSIONS = st.builds(
    Extension, steps=st.integers(1, 300), schedule=st.sampled_from(["hold", "rewarm", "decay"]), learning_rate=PEAKS
)
UNETS = st.builds(
    UNetConfig, steps=st.integers(0, 300), learning_rate=PEAKS, extensions=st.lists(EXTENSIONS, max_size=4).map(tuple)
)


def extension(steps: int, schedule: Any, peak: float = 1.0) -> list[float]:
    extended = Extension.model_construct(steps=steps, schedule=schedule, learning_rate=peak)
    config = UNetConfig.model_construct(steps=0, learning_rate=1.0, extensions=(extended,))
    return [rate_at(config, step) for step in range(steps)]


def rates(config: UNetConfig) -> list[float]:
    return [rate_at(config, step) for step in range(config.all_steps)]


def test_the_three_by_hand() -> None:
    assert extension(4, "hold") == [1, 1, 1, 1]
    assert extension(4, "decay") == [1, 0.75, 0.5, 0.25]
    assert extension(4, "rewarm") == [1, 0.75, 0.5, 0.25], "the first tenth is one step at least"
    assert extension(20, "rewarm") == pytest.approx([0.5, 1, *(1 - step / 19 for step in range(1, 19))])
    assert extension(1, "rewarm") == extension(1, "decay") == extension(1, "hold") == [1]


@given(UNETS)
def test_a_rate_is_never_negative_and_never_above_its_peak(config: UNetConfig) -> None:
    found = rates(config)
    assert all(rate > 0 for rate in found), "no step is idle"
    own, start = found[: config.steps], config.steps
    assert all(rate <= config.learning_rate for rate in own)
    for one in config.extensions:
        piece, start = found[start : start + one.steps], start + one.steps
        assert max(piece) == pytest.approx(one.learning_rate, rel=1e-12)
        assert max(piece) <= one.learning_rate * (1 + 1e-12)
    assert start == len(found)
    assert [rate_at(config, step) for step in (start, start + 1, start + 1000)] == [0, 0, 0]


@given(UNETS, EXTENSIONS)
def test_what_is_appended_changes_nothing_before_it(config: UNetConfig, more: Extension) -> None:
    longer = config.model_copy(update={"extensions": (*config.extensions, more)})
    assert rates(longer)[: config.all_steps] == rates(config)
    assert longer.all_steps == config.all_steps + more.steps
    plain = config.model_copy(update={"extensions": ()})
    assert rates(config)[: config.steps] == rates(plain)
    assert rates(plain) == [config.learning_rate * max(0.0, 1 - step / config.steps) for step in range(config.steps)]


@given(EXTENSIONS)
def test_a_rate_jumps_only_where_an_extension_begins(one: Extension) -> None:
    """Within, it moves by no more than its slope; a decay and a rewarming end where the next step would be 0."""
    found = extension(one.steps, one.schedule, one.learning_rate)
    warm = max(1, one.steps // 10)
    slope = (
        one.learning_rate
        * {"hold": 0, "decay": 1 / one.steps, "rewarm": max(1 / warm, 1 / (one.steps - warm + 1))}[one.schedule]
    )
    slack = one.learning_rate * 1e-9
    assert all(abs(after - before) <= slope + slack for before, after in pairwise(found))
    if one.schedule != "hold":
        assert found[-1] <= slope + slack
    if one.schedule == "rewarm":
        assert found[0] <= one.learning_rate / warm + slack
        top = found.index(max(found))
        assert top == warm - 1
        assert found[: top + 1] == sorted(found[: top + 1])
        assert found[top:] == sorted(found[top:], reverse=True)


@given(st.integers(1, 2000), PEAKS)
def test_their_sums(steps: int, peak: float) -> None:
    """What is learned in all is of the order of the sum of the rates: n p; (n + 1) p / 2 for the two that fall to 0."""
    warm = max(1, steps // 10)
    sums = {schedule: math.fsum(extension(steps, schedule, peak)) for schedule in ("hold", "decay", "rewarm")}
    assert sums["hold"] == pytest.approx(steps * peak)
    assert sums["decay"] == pytest.approx((steps + 1) * peak / 2)
    assert sums["rewarm"] == pytest.approx(peak * ((warm + 1) / 2 + (steps - warm) / 2))


def test_a_text_encoder_has_its_own_steps_alone() -> None:
    config = TextEncoderConfig(steps=4, learning_rate=0.1)
    assert [rate_at(config, step) for step in range(6)] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0, 0])


def test_the_peak_is_half_of_the_unets_where_none_is_given() -> None:
    assert default_peak(Config().unet) == 1e-6


@given(UNETS, st.integers(1, 400), PEAKS)
def test_a_changed_rate_changes_nothing_before_it_and_nothing_after_its_piece(
    config: UNetConfig, after: int, rate: float
) -> None:
    changed = config.model_copy(update={"rate_changes": (RateChange(after=after, learning_rate=rate),)})
    old, new = rates(config), rates(changed)
    ends = [config.steps + sum(one.steps for one in config.extensions[:count]) for count in range(5)]
    end = next((end for end in ends if end > after), after)
    assert new[:after] == old[:after]
    assert new[end:] == old[end:]
    piece = slice(after, min(end, len(old)))
    factor = rate / peak_at(config, after)
    assert new[piece] == pytest.approx([one * factor for one in old[piece]], rel=1e-9)


def test_a_rate_that_was_changed_can_be_changed_again() -> None:
    config = Config().changed(
        {"unet.steps": 40, "unet.extensions": [{"steps": 10, "schedule": "hold", "learning_rate": 1e-5}]}
    )
    first = config.unet.learning_rate

    def changes(*named: tuple[int, float | None]) -> list[str]:
        changed = config
        for after, rate in named:
            changed = with_rates_from(changed, {"unet.learning_rate": rate} if rate else {"seed": 3}, after)
        assert changed.unet.learning_rate == first or named[-1][0] == 0
        return [str(change) for change in changed.unet.rate_changes]

    assert changes((10, 1e-6)) == ["1e-06 after step 10"]
    assert changes((10, 1e-6), (20, 1e-7)) == ["1e-06 after step 10", "1e-07 after step 20"]
    assert changes((10, 1e-6), (20, 1e-7), (15, 3e-7)) == ["1e-06 after step 10", "3e-07 after step 15"]
    assert changes((10, 1e-6), (20, 1e-7), (10, 1e-6)) == ["1e-06 after step 10"], "the rate holds from there on"
    assert changes((10, 1e-6), (20, 1e-6)) == ["1e-06 after step 10"]
    assert changes((10, 1e-6), (5, first)) == []
    assert changes((10, 1e-6), (5, None)) == ["1e-06 after step 10"], "another setting leaves the schedule"
    assert changes((10, 1e-6), (0, 1e-6)) == []
    assert changes((45, 1e-6)) == ["1e-06 after step 45"]
    with pytest.raises(ConfigError, match="no further step after step 50"):
        changes((50, 1e-6))


def test_a_text_encoder_of_its_own_stage_changes_its_rate_as_a_whole() -> None:
    own = with_rates_from(Config(), {"text_encoder.learning_rate": 1e-7}, 10).text_encoder
    assert (own.learning_rate, own.rate_changes) == (1e-7, ())
    joint = Config().changed({"text_encoder.mode": "joint"})
    changed = with_rates_from(joint, {"text_encoder": {"learning_rate": 1e-7}}, 10).text_encoder
    assert (changed.learning_rate, [str(one) for one in changed.rate_changes]) == (1e-6, ["1e-07 after step 10"])


def test_the_default_peak_is_half_of_the_rate_that_was_changed() -> None:
    config = UNetConfig(steps=40, learning_rate=2e-6, rate_changes=(RateChange(after=10, learning_rate=1e-7),))
    assert default_peak(config) == 5e-8
