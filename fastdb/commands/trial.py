"""The trial: a subject that fastdb draws itself, to learn on mini in a few minutes, without photos or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdb.images.photos import save_png
from fastdb.runtime.paths import cache_folder
from fastdb.storage.atomic_write import make_folder, write_text
from fastdb.world.subjects import SUBJECTS

TOKEN, CLASS_WORD = "sks", "mug"
PROMPT = f"a photo of a {TOKEN} {CLASS_WORD}"

SETTINGS: dict[str, Any] = {"captions.instance_prompt": PROMPT, "samples.every_steps": 100}
"""Settings besides those recommended for mini."""


def trial_photos() -> list[Path]:
    """Write five photos of a mug that mini was not trained on, with captions; return their paths.

    A caption describes the background, so that it is not learned as a part of the mug.
    """
    folder, subject = cache_folder() / "trial_photos", SUBJECTS[CLASS_WORD]
    make_folder(folder)
    paths = []
    for number, (photo, caption) in enumerate(zip(subject.photos(), subject.captions(), strict=True), start=1):
        path = folder / f"{CLASS_WORD}-{number}.png"
        save_png(photo, path)
        write_text(path.with_suffix(".txt"), caption + "\n")
        paths.append(path)
    return paths
