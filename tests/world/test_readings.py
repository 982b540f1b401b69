"""Readings of drawn pictures by the judge, and subjects found by their templates."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from safetensors.torch import load_file

from fastdb.world.draw import SIDE, draw
from fastdb.world.readings import (
    HEADS,
    PRESENT,
    SHIFTS,
    SIZES,
    TILTS,
    WEIGHTS,
    Judge,
    Reading,
    _load_judge,
    expected_reading,
    find_subject,
    read,
    recognise,
    to_tensor,
)
from fastdb.world.scene import BACKGROUNDS, TEXTURES, Pose, Scene, random_pose
from fastdb.world.subjects import SUBJECTS, Subject

RoundTrip = Callable[[list[Image.Image]], list[Image.Image]]

each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))


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


def count_found(pictures: list[Image.Image], subject: Subject) -> int:
    """Count the pictures that show the subject."""
    return sum(likeness.present for likeness in find_subject(pictures, subject))


@each_subject
def test_a_subject_is_found_in_its_photos_and_after_the_autoencoder(subject: Subject, round_trip: RoundTrip) -> None:
    photos = subject.photos()
    assert count_found(photos, subject) == 5
    assert count_found(round_trip(photos), subject) == 5
    for likeness in find_subject(photos, subject):
        assert PRESENT <= likeness.layout <= likeness.shape <= 1


@each_subject
def test_a_subject_is_not_found_in_other_pictures(subject: Subject, pictures: list[Image.Image]) -> None:
    assert len(pictures) == 200
    assert count_found(pictures, subject) == 0
    others = [photo for other in SUBJECTS.values() if other is not subject for photo in other.photos()]
    assert len(others) == 15
    assert count_found(others, subject) == 0


@each_subject
def test_a_subjects_colours_in_other_places_do_not_count(subject: Subject) -> None:
    """The same two colours on the same figure, each where the other belongs; or one of them all over."""
    first, second = (f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in subject.parts)
    other = {first: second, second: first}
    swapped = replace(
        subject,
        figure=tuple(replace(layer, fill=other.get(layer.fill, layer.fill)) for layer in subject.figure),
    )
    assert swapped.figure != subject.figure
    assert count_found(swapped.photos(), subject) == 0
    for colour in subject.parts:
        assert count_found([draw(replace(subject.scene(), figure=None, colour=colour))], subject) == 0


@each_subject
def test_an_upside_down_subject_does_not_count(subject: Subject) -> None:
    turned = [photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for photo in subject.photos()]
    expected = 5 if subject.name == "fish" else 0  # a striped fish is nearly the same either way
    assert count_found(turned, subject) == expected


@each_subject
def test_a_subject_is_found_in_every_pose_and_background(subject: Subject) -> None:
    numbers = random.Random(subject.name)
    places = list(product(BACKGROUNDS, TEXTURES))
    pictures = [draw(subject.scene(*place, random_pose(numbers))) for place in places]
    corners = product((0.33, 0.42), (0.44, 0.56), (0.44, 0.56), (-0.16, 0.16))
    pictures += [draw(subject.scene("grey", "plain", Pose(*corner))) for corner in corners]
    assert len(pictures) == 48
    assert count_found(pictures, subject) == 48


def test_the_pose_grid_covers_random_poses() -> None:
    numbers = random.Random(0)
    for _ in range(500):
        pose = random_pose(numbers)
        for value, grid in (
            (pose.size, SIZES),
            (pose.x - 0.5, SHIFTS),
            (pose.y - 0.5, SHIFTS),
            (pose.tilt, TILTS),
        ):
            assert min(abs(value - step) for step in grid) <= (grid[1] - grid[0]) / 2 + 1e-9


@each_subject
def test_instance_images_of_a_subject_are_recognised(subject: Subject, pictures: list[Image.Image]) -> None:
    assert recognise(subject.photos()) is subject
    assert recognise(subject.photos()[:3] + pictures[:2]) is subject
    assert recognise(subject.photos()[:2] + pictures[:2]) is None


def test_pictures_without_a_subject_are_not_recognised(pictures: list[Image.Image], scenes: list[Scene]) -> None:
    assert recognise(pictures[:10]) is None
    of_a_class = [picture for picture, scene in zip(pictures, scenes, strict=True) if scene.shape == "mug"]
    assert len(of_a_class) >= 5
    assert recognise(of_a_class[:5]) is None
    assert recognise([]) is None
    assert find_subject([], SUBJECTS["mug"]) == []
