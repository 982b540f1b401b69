"""Bounds of inference requests."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

pytest.importorskip("torch")

from fastdb.errors import ConfigError
from fastdb.inference.request import Request
from fastdb.inference.samplers import DEFAULT, SAMPLERS, check_sampler

SIDES = (-64, 0, 8, 56, 63, 65, 70, 500, 511, 4097, 4104, 9000)
BAD = [
    *((side, value) for side in ("width", "height") for value in SIDES),
    *((name, value) for name in ("steps", "count") for value in (-1, 0, 1001)),
    *(("guidance", value) for value in (-0.1, 50.1, math.inf, -math.inf, math.nan)),
    *(("seed", value) for value in (-1, 2**63 - 1, 2**64)),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_each_bound_is_said_in_one_line_with_a_value_that_would_do(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Request("a cup", **{name: value})
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{name} {value} is no")
    advice = re.fullmatch(r"Try (\S+)\.", caught.value.fix)
    assert advice, line
    Request("a cup", **{name: float(advice[1]) if name == "guidance" else int(advice[1])})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 64),
        ("height", 4096),
        ("width", 520),
        ("steps", 1),
        ("steps", 1000),
        ("count", 1000),
        ("guidance", 0),
        ("guidance", 50),
        ("seed", 2**63 - 2),
        ("prompt", ""),
        ("negative_prompt", "x" * 10_000),
    ],
)
def test_the_bounds_themselves_are_taken(name: str, value: Any) -> None:
    assert getattr(Request(**{"prompt": "a cup", name: value}), name) == value


def test_the_last_picture_has_a_seed_too() -> None:
    Request("a cup", seed=2**63 - 11, count=10)
    with pytest.raises(ConfigError, match=r"^seed 9"):
        Request("a cup", seed=2**63 - 10, count=10)


@pytest.mark.parametrize(
    ("name", "near"), [("euler b", "Euler a"), ("dpm++2m karras", "DPM++ 2M Karras"), ("dim", "DDIM")]
)
def test_the_nearest_sampler_is_told(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Request("a cup", sampler=name)
    assert str(caught.value) == f"sampler {name!r}: there is no such sampler. Did you mean {near}?"


def test_all_samplers_are_told_when_none_is_near() -> None:
    with pytest.raises(ConfigError) as caught:
        check_sampler("zzz\n")
    assert str(caught.value).isprintable()
    assert all(name in str(caught.value) for name in SAMPLERS)


def test_a_sampler_is_spelled_as_we_do_whatever_the_case() -> None:
    assert Request("a cup").sampler == DEFAULT
    for name in SAMPLERS:
        assert Request("a cup", sampler=name.upper()).sampler == name
        assert check_sampler(name.lower()) == name


def test_a_request_stays_as_it_was_checked() -> None:
    request = Request("a cup")
    with pytest.raises(FrozenInstanceError):
        request.steps = 0  # type: ignore[misc]
