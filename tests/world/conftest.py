"""Pictures that are in no training data, as drawn and after the autoencoder of mini."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastdb.world.draw import draw
from fastdb.world.scene import Scene, random_scene


@pytest.fixture(scope="package")
def scenes() -> list[Scene]:
    """200 scenes with seeds of their own."""
    return [random_scene(random.Random(f"tests/{number}")) for number in range(200)]


@pytest.fixture(scope="package")
def pictures(scenes: list[Scene]) -> list[Image.Image]:
    """The pictures of those scenes."""
    return [draw(scene) for scene in scenes]


@pytest.fixture(scope="package")
def tensor_round_trip(mini: Path) -> Callable[[Any], Any]:
    """Encode and decode pictures in -1 to 1 with the autoencoder of mini."""
    torch = pytest.importorskip("torch")
    loading = pytest.importorskip("fastdb.models.loading")
    vae: Any = loading.load_part(mini, "vae")

    def there_and_back(pictures: Any) -> Any:
        with torch.no_grad():
            seen = [vae.decode(vae.encode(group).latent_dist.mean).sample for group in pictures.split(25)]
        return torch.cat(seen).clamp(-1, 1)

    return there_and_back


@pytest.fixture(scope="package")
def round_trip(tensor_round_trip: Callable[[Any], Any]) -> Callable[[list[Image.Image]], list[Image.Image]]:
    """Encode and decode pictures with the autoencoder of mini."""
    from fastdb.world.readings import to_tensor

    def there_and_back(some: list[Image.Image]) -> list[Image.Image]:
        pixels = ((tensor_round_trip(to_tensor(some)) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        return [Image.fromarray(array.numpy()) for array in pixels]

    return there_and_back
