"""Recommended settings for mini, whose size the defaults do not fit, and for LoRA."""

from __future__ import annotations

from typing import Any

from fastdb.models.registry import MINI
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, prompt

_LORA = {"unet.learning_rate": 1e-4, "text_encoder.learning_rate": 5e-5}
"""The UNet's is that of the examples in sd-scripts' documentation, with the same initial values and targets; the text
encoder's is half of it. Rates of full fine-tuning barely move a LoRA."""
_LORA_ON_MINI = {"unet.learning_rate": 6e-3, "text_encoder.learning_rate": 6e-3}
"""As much higher than those of full fine-tuning as its adapters, which begin at zero, need."""


def recommended(base: object, class_word: str, method: str = "full") -> dict[str, Any]:
    """Return dotted settings for sessions on a base model; empty for full fine-tuning of all but mini.

    Args:
        base: the base model's name, path or link.
        class_word: the class that a fourth of the class images show.
        method: "full" or "lora".
    """
    if str(base) != MINI:
        return dict(_LORA) if method == "lora" else {}
    return {**_on_mini(class_word), **(_LORA_ON_MINI if method == "lora" else {})}


def _on_mini(class_word: str) -> dict[str, Any]:
    return {
        "resolution": 64,
        "batch_size": 2,
        "text_encoder.steps": 120,
        "text_encoder.learning_rate": 5e-4,
        "unet.steps": 700,
        "unet.learning_rate": 1.2e-3,
        "prior.class_images": 64,
        "prior.batch_size": 6,
        "prior.weight": 1.5,
        "prior.steps": 15,
        "prior.guidance": 3.0,
        "prior.prompts": _prior_prompts(class_word),
        "checkpoints.every_steps": 50,
        "samples.guidance": 2.0,
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
