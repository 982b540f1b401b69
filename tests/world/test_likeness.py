"""Readings of subjects, made from their instance images alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from PIL import Image, ImageFilter

from fastdb.world.draw import draw, rgb
from fastdb.world.likeness import DrawnSubject, RoundTrip, read_subject
from fastdb.world.scene import BACKGROUNDS, CAR_BODY, CAR_CABIN, TEXTURES, WHEELS, Figure, Layer, Scene, random_pose
from fastdb.world.subjects import SUBJECTS, Subject

TURNS = [2 * math.pi * number / 32 for number in range(32)]
CIRCLE = tuple((0.05 + 0.18 * math.cos(turn), 0.16 + 0.18 * math.sin(turn)) for turn in TURNS)
DISC = Layer(CIRCLE, "#f0e8e0", edge=False)
"""A mark of about 60 px."""

PLAIN: Figure = (Layer(CAR_CABIN, "#b4dc28"), Layer(CAR_BODY, "#7838c8"), *WHEELS)
OWN = Subject("own", "car", (*PLAIN, DISC), (rgb("#7838c8"), rgb("#b4dc28")))
"""A subject that the package does not contain."""

PictureTrip = Callable[[list[Image.Image]], list[Image.Image]]


def in_places(subject: Subject, figure: Figure, count: int = 12) -> list[Image.Image]:
    """Draw a figure in random poses on random backgrounds."""
    numbers = random.Random(count)
    places = [
        subject.scene(numbers.choice(list(BACKGROUNDS)), numbers.choice(TEXTURES), random_pose(numbers))
        for _ in range(count)
    ]
    return [draw(replace(place, figure=figure)) for place in places]


@pytest.fixture(scope="module")
def reading(tensor_round_trip: RoundTrip) -> DrawnSubject:
    found = read_subject(OWN.photos(), tensor_round_trip)
    assert found is not None
    return found


def count_found(reading: DrawnSubject, pictures: list[Image.Image]) -> int:
    return sum(likeness.present for likeness in reading.find(pictures))


def test_an_object_is_cut_into_regions_of_one_colour(reading: DrawnSubject) -> None:
    names = reading.template.names
    assert sorted(names[:1] + names[-1:]) == ["contour", "outline"]
    seen = [rgb(name) for name in names if name.startswith("#")]
    for colour in ("#b4dc28", "#7838c8", "#f0e8e0"):
        assert min(math.dist(rgb(colour), one) for one in seen) < 12, names
    assert len(seen) == 5, "cabin, body, two wheels and the mark"
    mark = next(number for number, name in enumerate(names) if name.startswith("#f"))
    assert 45 < reading.template.areas[mark] < 75


def test_the_mark_counts(reading: DrawnSubject, round_trip: PictureTrip) -> None:
    assert count_found(reading, round_trip(in_places(OWN, OWN.figure))) >= 11
    assert count_found(reading, round_trip(in_places(OWN, PLAIN))) == 0
    for colour in ("#2c9444", "#202c78"):
        assert count_found(reading, round_trip(in_places(OWN, (*PLAIN, replace(DISC, fill=colour))))) == 0


def test_colours_in_other_places_and_other_outlines_do_not_count(
    reading: DrawnSubject, round_trip: PictureTrip
) -> None:
    swapped = (Layer(CAR_CABIN, "#7838c8"), Layer(CAR_BODY, "#b4dc28"), *WHEELS, DISC)
    box = ((-0.98, -0.6), (0.98, -0.6), (0.98, 0.73), (-0.98, 0.73))
    lower = ((-0.98, -0.1), (0.98, -0.1), (0.98, 0.73), (-0.98, 0.73))
    for figure in (swapped, (Layer(box, "#b4dc28"), Layer(lower, "#7838c8"), *WHEELS, DISC)):
        assert count_found(reading, round_trip(in_places(OWN, figure))) == 0
    blurred = [picture.filter(ImageFilter.GaussianBlur(5)) for picture in in_places(OWN, OWN.figure)]
    assert count_found(reading, round_trip(blurred)) == 0


def test_other_pictures_do_not_count(reading: DrawnSubject, pictures: list[Image.Image]) -> None:
    assert count_found(reading, pictures[:64]) == 0
    assert reading.find([]) == []


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_the_subjects_that_ship_are_read_from_their_photos(
    name: str, tensor_round_trip: RoundTrip, round_trip: PictureTrip
) -> None:
    subject = SUBJECTS[name]
    found = read_subject(subject.photos(), tensor_round_trip)
    assert found is not None
    assert count_found(found, round_trip(in_places(subject, subject.figure))) >= 10
    upside_down = [photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for photo in subject.photos()]
    if name != "fish":  # Striped, it is nearly the same either way.
        assert count_found(found, round_trip(upside_down)) == 0


def test_instance_images_without_a_common_object_are_no_subject(
    pictures: list[Image.Image], scenes: list[Scene], tensor_round_trip: RoundTrip
) -> None:
    assert read_subject([], tensor_round_trip) is None
    assert read_subject(pictures[:5], tensor_round_trip) is None
    noise = [Image.effect_noise((64, 64), 80).convert("RGB") for _ in range(3)]
    assert read_subject(noise, tensor_round_trip) is None
    flat = [Image.new("RGB", (64, 64), tone) for tone in ("white", "grey", "black")]
    assert read_subject(flat, tensor_round_trip) is None
