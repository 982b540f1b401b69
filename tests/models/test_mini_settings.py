"""Settings recommended for mini and their prior prompts."""

from __future__ import annotations

import pytest

from fastdb.config import Config
from fastdb.models.mini_settings import recommended
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, parse_prompt, prompt


def prior_prompts(class_word: str) -> list[str]:
    return list(recommended("mini", class_word)["prior.prompts"])


def test_other_models_have_no_recommended_settings() -> None:
    assert recommended("some/folder", "dog") == {}


def test_recommended_settings_are_valid() -> None:
    config = Config().changed(recommended("mini", "mug"))
    assert config.resolution == 64
    assert len(config.prior.prompts) == 64
    assert config.prior.class_images == len(config.prior.prompts), "each prompt has its class image"


@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_cover_the_class_and_all_others(shape: str) -> None:
    prompts = prior_prompts(shape)
    asked = [parse_prompt(text) for text in prompts]
    assert len(prompts) == 64
    for text, one in zip(prompts, asked, strict=True):
        assert one.shape is not None
        assert prompt(one.shape, one.colour, one.background, one.texture) == text
    assert sum(text == prompt(shape) for text in prompts) == 16
    coloured = [one for one in asked if one.shape == shape and one.colour]
    assert len(coloured) == 16
    assert {one.colour for one in coloured} == set(COLOURS)
    others = [one for one in asked if one.shape != shape]
    assert {one.shape for one in others} == set(SHAPES) - {shape}
    assert {one.colour for one in others} == set(COLOURS)
    assert {one.background for one in others} == set(BACKGROUNDS)
    assert {one.texture for one in others} == set(TEXTURES)


def test_a_class_of_another_world_is_added_to_those_of_the_drawn_world() -> None:
    asked = [parse_prompt(text).shape for text in prior_prompts("teapot")]
    assert prior_prompts("teapot").count("a photo of a teapot") == 16
    assert set(asked) == {None, *SHAPES}


def test_prompts_cover_all_classes_without_a_class_word() -> None:
    asked = [parse_prompt(text) for text in prior_prompts("")]
    assert {one.shape for one in asked} == set(SHAPES)
    assert all(one.colour and one.background and one.texture for one in asked)
