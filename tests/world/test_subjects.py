"""Subjects, whose colours and figures are in no training picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdb.world.draw import DARK, LIGHT, SIDE, draw, rgb
from fastdb.world.scene import BACKGROUNDS, COLOURS, FIGURES, TEXTURES, Colour, parse_prompt, prompt, random_pose
from fastdb.world.subjects import PLACES, SUBJECTS, Subject

PALETTE = [*COLOURS.values(), *BACKGROUNDS.values(), DARK, LIGHT]


def apart(first: Colour, second: Colour) -> float:
    return math.dist(first, second)


def test_four_subjects_have_four_classes() -> None:
    assert list(SUBJECTS) == ["mug", "fish", "house", "car"]
    for name, subject in SUBJECTS.items():
        assert name == subject.name
        assert subject.shape in FIGURES
    assert len({subject.figure for subject in SUBJECTS.values()}) == 4


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_a_subjects_colours_are_in_no_training_picture(subject: Subject) -> None:
    """Scenes paint within 10 a channel, 17.4 in all, of a colour with a name."""
    assert len(subject.parts) == 2
    assert apart(*subject.parts) > 100
    for part in subject.parts:
        assert min(apart(part, colour) for colour in PALETTE) > 60
    painted = {rgb(layer.fill) for layer in subject.figure if layer.fill.startswith("#")}
    assert set(subject.parts) <= painted
    assert not {layer.fill for layer in subject.figure} & {"body", "shade"}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_a_subjects_figure_differs_from_its_class(subject: Subject) -> None:
    ordinary = FIGURES[subject.shape]
    colours = {layer.outline: layer.fill for layer in subject.figure}
    assert colours != {layer.outline: layer.fill for layer in ordinary}
    # Its class is still recognisable: some outlines are the same.
    assert {layer.outline for layer in ordinary} & set(colours)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_each_part_covers_much_of_a_photo(subject: Subject) -> None:
    for photo in subject.photos():
        seen = np.asarray(photo, np.float64).reshape(-1, 3)
        for part in subject.parts:
            assert (np.linalg.norm(seen - part, axis=1) < 30).sum() >= 100


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_a_subject_has_five_photos(subject: Subject) -> None:
    photos = subject.photos()
    assert [(photo.mode, photo.size) for photo in photos] == [("RGB", (SIDE, SIDE))] * 5
    assert len({photo.tobytes() for photo in photos}) == 5
    assert [photo.tobytes() for photo in photos] == [draw(subject.scene(*place)).tobytes() for place in PLACES]
    for caption, (background, texture, _) in zip(subject.captions(), PLACES, strict=True):
        asked = parse_prompt(f"{prompt('sks ' + subject.shape)} {caption}")
        assert (asked.shape, asked.background, asked.texture) == (subject.shape, background, texture)


def test_captions_name_the_background_of_each_photo() -> None:
    assert SUBJECTS["mug"].captions()[1] == "on a striped blue background"


def test_photos_have_poses_of_training_pictures() -> None:
    assert len({background for background, _, _ in PLACES}) == 5
    assert {texture for _, texture, _ in PLACES} == set(TEXTURES)

    class Ends:
        """Random numbers that are always at an end of their range."""

        def __init__(self, high: bool) -> None:
            self.high = high

        def uniform(self, low: float, high: float) -> float:
            return high if self.high else low

    least, most = random_pose(Ends(False)), random_pose(Ends(True))  # type: ignore[arg-type]
    for _, _, pose in PLACES:
        for name in ("size", "x", "y", "tilt"):
            assert getattr(least, name) <= getattr(pose, name) <= getattr(most, name)
