"""Pictures to train on, drawn once and kept in the work folder."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from training import Crew

from fastdb.world.draw import SIDE, draw
from fastdb.world.scene import Scene, random_scene


def scenes(seed: int, kind: str, count: int, *, any_colour: bool = False) -> list[Scene]:
    """`count` scenes; each depends on the seed, the kind and its number alone."""
    return [random_scene(random.Random(f"{seed}/{kind}/{n}"), any_colour=any_colour) for n in range(count)]


def pictures(work: Path, seed: int, kind: str, count: int, crew: Crew, *, any_colour: bool = False) -> np.ndarray:
    """Those scenes as pictures: uint8 (count, 64, 64, 3), memory-mapped from `<kind>.npy`, where they are kept.

    Raises:
        ValueError: what is kept there is of another number of scenes.
    """

    def make(file: Path) -> None:
        drawn = np.empty((count, SIDE, SIDE, 3), np.uint8)
        for number, scene in enumerate(scenes(seed, kind, count, any_colour=any_colour)):
            drawn[number] = np.asarray(draw(scene))
        with file.open("wb") as new:
            np.save(new, drawn)

    file = crew.once(work / f"{kind}.npy", make)
    kept: np.ndarray = np.load(file, mmap_mode="r")
    if len(kept) != count:
        raise ValueError(f"{file} holds {len(kept)} pictures, not {count}: begin in another work folder")
    return kept


def to_tensor(some: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) as float32 (n, 3, h, w) in -1 to 1."""
    return torch.from_numpy(np.array(some)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
