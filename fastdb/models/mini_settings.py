"""Recommended settings for mini, whose size the defaults do not fit."""

from __future__ import annotations

from typing import Any

from fastdb.models.registry import MINI
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, prompt


def recommended(base: object, class_word: str) -> dict[str, Any]:
    """Return dotted settings for sessions on a base model; empty for all but mini.

    Args:
        base: the base model's name, path or link.
        class_word: the class that a fourth of the class images show.
    """
    if str(base) != MINI:
        return {}
    return {
        "resolution": 64,
        "batch_size": 2,
        "text_encoder.steps": 120,
        "text_encoder.learning_rate": 1e-3,
        "unet.steps": 450,
        "unet.learning_rate": 6e-4,
        "prior.class_images": 64,
        "prior.batch_size": 6,
        "prior.weight": 1.5,
        "prior.steps": 15,
        "prior.guidance": 3.0,
        "prior.prompts": _prior_prompts(class_word),
        "checkpoints.every_steps": 50,
        "samples.guidance": 3.0,
        "captions.caption_dropout": 0.3,
    }


def _prior_prompts(class_word: str, count: int = 64) -> list[str]:
    """Return prompts of the drawn world for prior preservation.

    Every fourth is the class alone, every fourth the class in a colour, the rest is of other classes.
    """
    colours, backgrounds = list(COLOURS), list(BACKGROUNDS)
    others = [shape for shape in SHAPES if shape != class_word]
    prompts = []
    for number in range(count):
        place = backgrounds[(5 * number + number // 8) % 8], TEXTURES[(number + number // 4) % 4]
        colour = colours[(3 * number + number // 8) % 8]
        if class_word and number % 4 == 0:
            prompts.append(prompt(class_word))
        elif class_word and number % 4 == 2:
            prompts.append(prompt(class_word, colour, *place))
        else:
            prompts.append(prompt(others[(number // 2) % len(others)], colour, *place))
    return prompts
