"""A subject is found where it is, and only there."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

pytest.importorskip("torch")

from PIL import Image

from fastdb.world.draw import draw
from fastdb.world.readings import PRESENT, SHIFTS, SIZES, TILTS, recognise, shows
from fastdb.world.scene import BACKGROUNDS, TEXTURES, Pose, Scene, random_pose
from fastdb.world.subjects import SUBJECTS, Subject

RoundTrip = Callable[[list[Image.Image]], list[Image.Image]]

each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))


def found(pictures: list[Image.Image], subject: Subject) -> int:
    """In how many pictures the subject is."""
    return sum(likeness.present for likeness in shows(pictures, subject))


@each_subject
def test_it_is_found_in_its_own_photos_and_after_the_autoencoder(subject: Subject, round_trip: RoundTrip) -> None:
    photos = subject.photos()
    assert found(photos, subject) == 5
    assert found(round_trip(photos), subject) == 5
    for likeness in shows(photos, subject):
        assert PRESENT <= likeness.layout <= likeness.shape <= 1


@each_subject
def test_it_is_not_found_in_other_pictures(subject: Subject, pictures: list[Image.Image]) -> None:
    assert len(pictures) == 200
    assert found(pictures, subject) == 0
    others = [photo for other in SUBJECTS.values() if other is not subject for photo in other.photos()]
    assert len(others) == 15
    assert found(others, subject) == 0


@each_subject
def test_its_colours_in_other_places_are_not_it(subject: Subject) -> None:
    """The same two colours on the same figure, each where the other belongs; or one of them all over."""
    first, second = (f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in subject.parts)
    other = {first: second, second: first}
    swapped = replace(
        subject,
        figure=tuple(replace(layer, fill=other.get(layer.fill, layer.fill)) for layer in subject.figure),
    )
    assert swapped.figure != subject.figure
    assert found(swapped.photos(), subject) == 0
    for colour in subject.parts:
        assert found([draw(replace(subject.scene(), figure=None, colour=colour))], subject) == 0


@each_subject
def test_upside_down_is_not_it(subject: Subject) -> None:
    turned = [photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for photo in subject.photos()]
    expected = 5 if subject.name == "fish" else 0  # a striped fish is nearly the same either way
    assert found(turned, subject) == expected


@each_subject
def test_it_is_found_wherever_it_stands_on_every_background(subject: Subject) -> None:
    numbers = random.Random(subject.name)
    places = list(product(BACKGROUNDS, TEXTURES))
    pictures = [draw(subject.scene(*place, random_pose(numbers))) for place in places]
    corners = product((0.33, 0.42), (0.44, 0.56), (0.44, 0.56), (-0.16, 0.16))
    pictures += [draw(subject.scene("grey", "plain", Pose(*corner))) for corner in corners]
    assert len(pictures) == 48
    assert found(pictures, subject) == 48


def test_the_poses_looked_for_cover_those_that_pictures_have() -> None:
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
def test_photos_are_recognised(subject: Subject, pictures: list[Image.Image]) -> None:
    assert recognise(subject.photos()) is subject
    assert recognise(subject.photos()[:3] + pictures[:2]) is subject
    assert recognise(subject.photos()[:2] + pictures[:2]) is None


def test_nothing_is_recognised_where_nothing_is(pictures: list[Image.Image], scenes: list[Scene]) -> None:
    assert recognise(pictures[:10]) is None
    of_a_class = [picture for picture, scene in zip(pictures, scenes, strict=True) if scene.shape == "mug"]
    assert len(of_a_class) >= 5
    assert recognise(of_a_class[:5]) is None
    assert recognise([]) is None
    assert shows([], SUBJECTS["mug"]) == []
