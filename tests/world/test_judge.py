"""The judge that ships is right on pictures nobody trained it on, as drawn and after mini's autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from safetensors.torch import load_file

from fastdb.world.draw import SIDE
from fastdb.world.judge import HEADS, WEIGHTS, Judge, judge, to_tensor
from fastdb.world.readings import Reading, read, truth
from fastdb.world.scene import Scene

RoundTrip = Callable[[list[Image.Image]], list[Image.Image]]


def right(scenes: list[Scene], pictures: list[Image.Image]) -> dict[str, float]:
    """Each head's share of right words."""
    pairs = list(zip(map(truth, scenes), read(pictures), strict=True))
    return {head: sum(getattr(a, head) == getattr(b, head) for a, b in pairs) / len(pairs) for head in HEADS}


def test_it_reads_drawn_pictures(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    found = right(scenes, pictures)
    assert len(pictures) == 200
    assert found.pop("shape") >= 0.97
    assert min(found.values()) >= 0.98, found


def test_it_reads_what_the_autoencoder_gives_back(
    scenes: list[Scene], pictures: list[Image.Image], round_trip: RoundTrip
) -> None:
    found = right(scenes[:100], round_trip(pictures[:100]))
    assert found.pop("shape") >= 0.97
    assert min(found.values()) >= 0.98, found


def test_it_says_what_it_sees_and_not_what_is_common(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    """Held against the scenes of other pictures it is wrong as often as chance has it."""
    found = right(scenes, [*pictures[1:], pictures[0]])
    assert found["shape"] < 0.25
    assert max(found.values()) < 0.5


def test_a_reading_has_a_word_of_each_head() -> None:
    assert [field.name for field in fields(Reading)] == list(HEADS)
    assert [len(words) for words in HEADS.values()] == [10, 8, 8, 4]


def test_neither_company_nor_size_matters(pictures: list[Image.Image]) -> None:
    together = read(pictures[:12])
    assert [read([one])[0] for one in pictures[:12]] == together
    larger = [one.resize((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST) for one in pictures[:12]]
    assert read(larger) == together
    assert read([one.convert("RGBA") for one in pictures[:12]]) == together
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


def test_its_file_is_small_and_complete() -> None:
    stored = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 700_000
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert set(stored) == set(Judge().state_dict())
    assert all(tensor.isfinite().all() for tensor in stored.values())
    assert judge() is judge()
    assert not judge().training
