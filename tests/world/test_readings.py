"""Readings of drawn pictures by the judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from safetensors.torch import load_file

from fastdb.world.draw import SIDE
from fastdb.world.readings import (
    HEADS,
    WEIGHTS,
    Judge,
    Reading,
    _load_judge,
    expected_reading,
    read,
    to_tensor,
)
from fastdb.world.scene import Scene

RoundTrip = Callable[[list[Image.Image]], list[Image.Image]]


def right(scenes: list[Scene], pictures: list[Image.Image]) -> dict[str, float]:
    """Return each head's share of correct words."""
    pairs = list(zip(map(expected_reading, scenes), read(pictures), strict=True))
    return {head: sum(getattr(a, head) == getattr(b, head) for a, b in pairs) / len(pairs) for head in HEADS}


def test_the_judge_reads_drawn_pictures(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    shares = right(scenes, pictures)
    assert len(pictures) == 200
    assert shares.pop("shape") >= 0.97
    assert min(shares.values()) >= 0.98, shares


def test_the_judge_reads_pictures_after_the_autoencoder(
    scenes: list[Scene], pictures: list[Image.Image], round_trip: RoundTrip
) -> None:
    shares = right(scenes[:100], round_trip(pictures[:100]))
    assert shares.pop("shape") >= 0.97
    assert min(shares.values()) >= 0.98, shares


def test_readings_of_other_pictures_are_right_only_by_chance(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    """Held against the scenes of other pictures it is wrong as often as chance has it."""
    shares = right(scenes, [*pictures[1:], pictures[0]])
    assert shares["shape"] < 0.25
    assert max(shares.values()) < 0.5


def test_a_reading_has_a_word_of_each_head() -> None:
    assert [field.name for field in fields(Reading)] == list(HEADS)
    assert [len(words) for words in HEADS.values()] == [10, 8, 8, 4]


def test_a_reading_is_independent_of_batch_and_size(pictures: list[Image.Image]) -> None:
    together = read(pictures[:12])
    assert [read([picture])[0] for picture in pictures[:12]] == together
    larger = [picture.resize((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST) for picture in pictures[:12]]
    assert read(larger) == together
    assert read([picture.convert("RGBA") for picture in pictures[:12]]) == together
    assert read([]) == []


def test_pictures_become_numbers_from_minus_one_to_one(pictures: list[Image.Image]) -> None:
    seen = to_tensor(pictures[:3])
    assert seen.shape == (3, 3, SIDE, SIDE)
    assert seen.dtype == torch.float32
    back = ((seen[1].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    assert (back == np.asarray(pictures[1])).all()
    ends = to_tensor([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")])
    assert ends.amin().item() == -1
    assert ends.amax().item() == 1


def test_the_weights_are_small_and_complete() -> None:
    stored = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 700_000
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert set(stored) == set(Judge().state_dict())
    assert all(tensor.isfinite().all() for tensor in stored.values())
    assert _load_judge() is _load_judge()
    assert not _load_judge().training
