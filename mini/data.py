"""Training pictures, drawn once and kept in the work folder."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from training import Workers

from fastdb.world.draw import SIDE, draw
from fastdb.world.scene import Scene, random_scene


def scenes(seed: int, kind: str, count: int, *, any_colour: bool = False) -> list[Scene]:
    """Return `count` scenes; each depends only on the seed, the kind and its number."""
    return [random_scene(random.Random(f"{seed}/{kind}/{n}"), any_colour=any_colour) for n in range(count)]


def pictures(work: Path, seed: int, kind: str, count: int, workers: Workers, *, any_colour: bool = False) -> np.ndarray:
    """Return the pictures of those scenes, uint8 (count, 64, 64, 3), memory-mapped from `<kind>.npy`.

    Raises:
        ValueError: the existing file contains another number of pictures.
    """

    def make(file: Path) -> None:
        drawn = np.empty((count, SIDE, SIDE, 3), np.uint8)
        for number, scene in enumerate(scenes(seed, kind, count, any_colour=any_colour)):
            drawn[number] = np.asarray(draw(scene))
        with file.open("wb") as new:
            np.save(new, drawn)

    file = workers.make_once(work / f"{kind}.npy", make)
    saved: np.ndarray = np.load(file, mmap_mode="r")
    if len(saved) != count:
        raise ValueError(f"{file} contains {len(saved)} pictures instead of {count}. Use another work folder.")
    return saved


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Convert pictures uint8 (n, h, w, 3) to float32 (n, 3, h, w) in -1 to 1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
