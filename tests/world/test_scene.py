"""Scenes depend on their seed alone; prompts say what they hold, and can be read back."""

from __future__ import annotations

import hashlib
import random
from itertools import product

import pytest

from fastdb.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Asked,
    Scene,
    described,
    prompt,
    random_scene,
)
from fastdb.world.shapes import DECORATIONS


def scene(seed: str, **how: bool) -> Scene:
    return random_scene(random.Random(seed), **how)


def test_a_scene_is_a_function_of_its_seed() -> None:
    random.seed(0)
    first = [scene(f"{number}") for number in range(50)]
    random.seed(1)
    assert [scene(f"{number}") for number in range(50)] == first
    assert len(set(first)) == 50


@pytest.mark.parametrize(
    ("any_colour", "digest"),
    [
        (False, "16382ea8c81a073e"),
        (True, "56abe3a80966b714"),
    ],
)
def test_seeds_mean_what_they_meant_when_mini_was_trained(any_colour: bool, digest: str) -> None:
    """With other scenes for its seeds, mini's pictures could not be drawn again."""
    seen = hashlib.sha256()
    for number in range(100):
        one = scene(f"0/scenes/{number}", any_colour=any_colour)
        pose = [round(value, 9) for value in (one.pose.size, one.pose.x, one.pose.y, one.pose.tilt)]
        worn = one.decoration and (one.decoration.name, one.decoration.colour)
        said = (one.shape, one.colour_name, one.background_name, one.texture)
        seen.update(repr((said, one.colour, one.background, pose, worn)).encode())
    assert seen.hexdigest()[:16] == digest


def test_scenes_show_all_there_is_and_stay_near_their_words(scenes: list[Scene]) -> None:
    assert {one.shape for one in scenes} == set(SHAPES)
    assert {one.colour_name for one in scenes} == set(COLOURS)
    assert {one.background_name for one in scenes} == set(BACKGROUNDS)
    assert {one.texture for one in scenes} == set(TEXTURES)
    assert {one.decoration.name for one in scenes if one.decoration} == set(DECORATIONS)
    assert 0.2 < sum(one.decoration is not None for one in scenes) / len(scenes) < 0.4
    for one in scenes:
        assert one.figure is None
        for colour, named, most in (
            (one.colour, COLOURS[one.colour_name], 10),
            (one.background, BACKGROUNDS[one.background_name], 6),
        ):
            assert all(abs(ours - theirs) <= most for ours, theirs in zip(colour, named, strict=True))
        assert 0.33 <= one.pose.size <= 0.42
        assert max(abs(one.pose.x - 0.5), abs(one.pose.y - 0.5)) <= 0.06
        assert abs(one.pose.tilt) <= 0.16


def test_any_colour_is_any_colour_half_of_the_time() -> None:
    drawn = [scene(str(number), any_colour=True) for number in range(400)]
    far = sum(
        max(abs(ours - theirs) for ours, theirs in zip(one.colour, COLOURS[one.colour_name], strict=True)) > 10
        for one in drawn
    )
    assert 0.4 < far / len(drawn) < 0.6


def test_prompts_and_described_undo_each_other_over_the_whole_vocabulary() -> None:
    places = [(None, None), *product(BACKGROUNDS, (None, *TEXTURES))]
    everything = [(shape, colour, *place) for shape, colour, place in product(SHAPES, (None, *COLOURS), places)]
    assert len(everything) == 10 * 9 * (1 + 8 * 5)
    texts = [prompt(*said) for said in everything]
    assert len(set(texts)) == len(texts)
    assert [described(text) for text in texts] == [Asked(*said) for said in everything]


def test_prompts_read_like_this() -> None:
    assert prompt("mug") == "a photo of a mug"
    assert prompt("sks mug", None, "grey") == "a photo of a sks mug on a grey background"
    assert prompt("mug", "red", "blue", "striped") == "a photo of a red mug on a striped blue background"
    assert prompt("mug", texture="striped") == "a photo of a mug"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("a photo of a sks mug on a plain black background", Asked("mug", None, "black", "plain")),
        ("A Photo of a RED Mug, on a dotted white background.", Asked("mug", "red", "white", "dotted")),
        ("a mug on a red background, oil painting", Asked("mug", None, "red", None)),
        ("a mug on an orange background", Asked("mug", None, None, None)),
        ("a mug on a striped teal background", Asked("mug", None, None, "striped")),
        ("a photo of a blue dog on the moon", Asked("dog", "blue", None, None)),
        ("a fish beside a house", Asked("fish", None, None, None)),
        ("carpet and doghouse", Asked(None, None, None, None)),
        ("", Asked(None, None, None, None)),
    ],
)
def test_prompts_of_others_are_understood_as_far_as_this_world_goes(text: str, asked: Asked) -> None:
    assert described(text) == asked
