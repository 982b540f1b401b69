"""Scenes as functions of their seed, and prompts that can be parsed."""

from __future__ import annotations

import hashlib
import random
from itertools import product

import pytest

from fastdb.world.scene import (
    BACKGROUNDS,
    COLOURS,
    DECORATIONS,
    SHAPES,
    TEXTURES,
    ParsedPrompt,
    Scene,
    parse_prompt,
    prompt,
    random_scene,
)


def scene_of(seed: str, **how: bool) -> Scene:
    return random_scene(random.Random(seed), **how)


def test_a_scene_is_a_function_of_its_seed() -> None:
    random.seed(0)
    first = [scene_of(f"{number}") for number in range(50)]
    random.seed(1)
    assert [scene_of(f"{number}") for number in range(50)] == first
    assert len(set(first)) == 50


@pytest.mark.parametrize(
    ("any_colour", "digest"),
    [
        (False, "16382ea8c81a073e"),
        (True, "56abe3a80966b714"),
    ],
)
def test_seeds_give_the_scenes_that_mini_was_trained_on(any_colour: bool, digest: str) -> None:
    """Otherwise the training pictures of mini could not be reproduced."""
    seen = hashlib.sha256()
    for number in range(100):
        scene = scene_of(f"0/scenes/{number}", any_colour=any_colour)
        pose = [round(value, 9) for value in (scene.pose.size, scene.pose.x, scene.pose.y, scene.pose.tilt)]
        worn = scene.decoration and (scene.decoration.name, scene.decoration.colour)
        words = (scene.shape, scene.colour_name, scene.background_name, scene.texture)
        seen.update(repr((words, scene.colour, scene.background, pose, worn)).encode())
    assert seen.hexdigest()[:16] == digest


def test_scenes_cover_the_vocabulary_and_stay_near_its_colours(scenes: list[Scene]) -> None:
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.colour_name for scene in scenes} == set(COLOURS)
    assert {scene.background_name for scene in scenes} == set(BACKGROUNDS)
    assert {scene.texture for scene in scenes} == set(TEXTURES)
    assert {scene.decoration.name for scene in scenes if scene.decoration} == set(DECORATIONS)
    assert 0.2 < sum(scene.decoration is not None for scene in scenes) / len(scenes) < 0.4
    for scene in scenes:
        assert scene.figure is None
        for colour, named, most in (
            (scene.colour, COLOURS[scene.colour_name], 10),
            (scene.background, BACKGROUNDS[scene.background_name], 6),
        ):
            assert all(abs(ours - theirs) <= most for ours, theirs in zip(colour, named, strict=True))
        assert 0.33 <= scene.pose.size <= 0.42
        assert max(abs(scene.pose.x - 0.5), abs(scene.pose.y - 0.5)) <= 0.06
        assert abs(scene.pose.tilt) <= 0.16


def test_any_colour_replaces_half_of_the_colours() -> None:
    drawn = [scene_of(str(number), any_colour=True) for number in range(400)]
    far = sum(
        max(abs(ours - theirs) for ours, theirs in zip(scene.colour, COLOURS[scene.colour_name], strict=True)) > 10
        for scene in drawn
    )
    assert 0.4 < far / len(drawn) < 0.6


def test_parsing_inverts_every_prompt() -> None:
    places = [(None, None), *product(BACKGROUNDS, (None, *TEXTURES))]
    everything = [(shape, colour, *place) for shape, colour, place in product(SHAPES, (None, *COLOURS), places)]
    assert len(everything) == 10 * 9 * (1 + 8 * 5)
    texts = [prompt(*words) for words in everything]
    assert len(set(texts)) == len(texts)
    assert [parse_prompt(text) for text in texts] == [ParsedPrompt(*words) for words in everything]


def test_prompts_have_a_fixed_form() -> None:
    assert prompt("mug") == "a photo of a mug"
    assert prompt("sks mug", None, "grey") == "a photo of a sks mug on a grey background"
    assert prompt("mug", "red", "blue", "striped") == "a photo of a red mug on a striped blue background"
    assert prompt("mug", texture="striped") == "a photo of a mug"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("a photo of a sks mug on a plain black background", ParsedPrompt("mug", None, "black", "plain")),
        ("A Photo of a RED Mug, on a dotted white background.", ParsedPrompt("mug", "red", "white", "dotted")),
        ("a mug on a red background, oil painting", ParsedPrompt("mug", None, "red", None)),
        ("a mug on an orange background", ParsedPrompt("mug", None, None, None)),
        ("a mug on a striped teal background", ParsedPrompt("mug", None, None, "striped")),
        ("a photo of a blue dog on the moon", ParsedPrompt("dog", "blue", None, None)),
        ("a fish beside a house", ParsedPrompt("fish", None, None, None)),
        ("carpet and doghouse", ParsedPrompt(None, None, None, None)),
        ("", ParsedPrompt(None, None, None, None)),
    ],
)
def test_free_prompts_are_parsed_as_far_as_the_vocabulary_goes(text: str, asked: ParsedPrompt) -> None:
    assert parse_prompt(text) == asked
