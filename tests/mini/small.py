"""The recipe of mini with few steps; `python tests/mini/small.py` has the options of `mini/make.py`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = (
    "data",
    "decoder",
    "denoiser",
    "judge",
    "make",
    "pack",
    "parts",
    "rare_words",
    "tokenizer",
    "training",
    "vae",
)


def load() -> SimpleNamespace:
    """Import the modules of `mini/`, which must be on the path."""
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


def shrink(recipe: SimpleNamespace) -> None:
    """Reduce pictures, batches and steps; save after each step."""
    few = {"save_every": 1, "log_every": 1}
    recipe.vae.PLAN = replace(recipe.vae.PLAN, steps=2, **few)
    recipe.vae.PICTURES = 8
    recipe.vae.HELD_OUT = recipe.decoder.HELD_OUT = 2
    # Layers that begin at zero let the gradient through to the text encoder from the third step on.
    recipe.denoiser.FIRST = replace(recipe.denoiser.FIRST, steps=4, **few)
    recipe.denoiser.LAST = replace(recipe.denoiser.LAST, steps=2, **few)
    recipe.denoiser.SCENES, recipe.denoiser.BATCH = 100, 8
    recipe.decoder.PLAN = replace(recipe.decoder.PLAN, steps=2, **few)
    recipe.rare_words.PLAN = replace(recipe.rare_words.PLAN, steps=2, **few)
    recipe.rare_words.SCENES, recipe.rare_words.BATCH, recipe.rare_words.SHARE = 20, 8, 0.5
    recipe.judge.PLAN = replace(recipe.judge.PLAN, steps=2, **few)
    recipe.judge.SCENES, recipe.judge.ROUND_TRIPS = 12, 6


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "mini"))
    small = load()
    shrink(small)
    small.make.main()
