"""Settings that fit a base model where the defaults, which are meant for Stable Diffusion at 512 px, do not."""

from __future__ import annotations

from typing import Any

from fastdb.models.resolve import MINI
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, prompt


def recommended(base: object, class_word: str) -> dict[str, Any]:
    """Dotted settings for sessions on a base model, as a person names it; none for most.

    Args:
        class_word: what the class images have to hold in place most.
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
        "prior.prompts": drawn_prompts(class_word),
        "checkpoints.every_steps": 50,
        "samples.guidance": 3.0,
        "captions.dropout": 0.3,
    }


def drawn_prompts(class_word: str, count: int = 64) -> list[str]:
    """Prompts of the drawn world to preserve: the class by itself, in every colour, and all other classes.

    Every fourth is the class alone, every fourth the class in a colour, the rest is of other classes.
    """
    colours, backgrounds = list(COLOURS), list(BACKGROUNDS)
    others = [shape for shape in SHAPES if shape != class_word]
    said = []
    for number in range(count):
        place = backgrounds[(5 * number + number // 8) % 8], TEXTURES[(number + number // 4) % 4]
        colour = colours[(3 * number + number // 8) % 8]
        if class_word and number % 4 == 0:
            said.append(prompt(class_word))
        elif class_word and number % 4 == 2:
            said.append(prompt(class_word, colour, *place))
        else:
            said.append(prompt(others[(number // 2) % len(others)], colour, *place))
    return said
