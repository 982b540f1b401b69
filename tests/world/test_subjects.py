"""Subjects are one of a kind: neither their colours nor their figures are in a training picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdb.world.draw import DARK, LIGHT, SIDE, draw, rgb
from fastdb.world.scene import BACKGROUNDS, COLOURS, TEXTURES, Colour, described, prompt, random_pose
from fastdb.world.shapes import FIGURES
from fastdb.world.subjects import PLACES, SUBJECTS, Subject

PALETTE = [*COLOURS.values(), *BACKGROUNDS.values(), DARK, LIGHT]


def apart(first: Colour, second: Colour) -> float:
    return math.dist(first, second)


def test_there_are_four_of_four_classes() -> None:
    assert list(SUBJECTS) == ["mug", "fish", "house", "car"]
    for name, subject in SUBJECTS.items():
        assert name == subject.name
        assert subject.shape in FIGURES
    assert len({subject.figure for subject in SUBJECTS.values()}) == 4


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_its_colours_are_in_no_training_picture(subject: Subject) -> None:
    """Scenes paint within 10 a channel, 17.4 in all, of a colour with a name."""
    assert len(subject.parts) == 2
    assert apart(*subject.parts) > 100
    for part in subject.parts:
        assert min(apart(part, colour) for colour in PALETTE) > 60
    painted = {rgb(layer.fill) for layer in subject.figure if layer.fill.startswith("#")}
    assert set(subject.parts) <= painted
    assert not {layer.fill for layer in subject.figure} & {"body", "shade"}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_its_figure_is_not_that_of_its_class(subject: Subject) -> None:
    ordinary = FIGURES[subject.shape]
    colours = {layer.outline: layer.fill for layer in subject.figure}
    assert colours != {layer.outline: layer.fill for layer in ordinary}
    # Yet most of its outline is: it is of its class.
    assert {layer.outline for layer in ordinary} & set(colours)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_each_part_covers_much_of_it(subject: Subject) -> None:
    for photo in subject.photos():
        seen = np.asarray(photo, np.float64).reshape(-1, 3)
        for part in subject.parts:
            assert (np.linalg.norm(seen - part, axis=1) < 30).sum() >= 100


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_there_are_five_photos_of_it(subject: Subject) -> None:
    photos = subject.photos()
    assert [(photo.mode, photo.size) for photo in photos] == [("RGB", (SIDE, SIDE))] * 5
    assert len({photo.tobytes() for photo in photos}) == 5
    assert [photo.tobytes() for photo in photos] == [draw(subject.scene(*place)).tobytes() for place in PLACES]
    for place, (background, texture, _) in zip(subject.backgrounds(), PLACES, strict=True):
        asked = described(f"{prompt('sks ' + subject.shape)} on a {place} background")
        assert (asked.shape, asked.background, asked.texture) == (subject.shape, background, texture)


def test_a_person_says_what_is_behind_it_in_each_photo() -> None:
    captions = SUBJECTS["mug"].captions()
    assert captions[1] == "on a striped blue background"
    for caption, (background, texture, _) in zip(captions, PLACES, strict=True):
        asked = described(f"{prompt('sks mug')} {caption}")
        assert (asked.background, asked.texture) == (background, texture)


def test_photos_are_taken_as_training_pictures_are() -> None:
    assert len({background for background, _, _ in PLACES}) == 5
    assert {texture for _, texture, _ in PLACES} == set(TEXTURES)

    class Ends:
        """Lots that always fall on one end."""

        def __init__(self, high: bool) -> None:
            self.high = high

        def uniform(self, low: float, high: float) -> float:
            return high if self.high else low

    least, most = random_pose(Ends(False)), random_pose(Ends(True))  # type: ignore[arg-type]
    for _, _, pose in PLACES:
        for name in ("size", "x", "y", "tilt"):
            assert getattr(least, name) <= getattr(pose, name) <= getattr(most, name)
