"""Recognition of a class in pictures, by mini's judge or by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL.Image import Image

from fastdb.measures.encoders import Clip
from fastdb.world import readings, scene

OTHER_CLASSES = (
    *("person", "animal", "bird", "fish", "insect", "plant", "flower", "tree", "meal", "fruit", "drink"),
    *("car", "vehicle", "boat", "building", "room", "landscape", "street", "furniture", "container"),
    *("toy", "garment", "shoe", "tool", "weapon", "machine", "instrument", "screen", "book", "poster", "pattern"),
)
"""Kinds of things among which CLIP chooses, besides the class itself."""

_ALIKE = 0.9
"""Cosine of CLIP's texts from which a kind counts as the class itself, such as animal for cat."""


class ClassReader(Protocol):
    """Tells which pictures show a class."""

    name: str

    def shows(self, pictures: Sequence[Image]) -> list[bool]:
        """Return whether each picture shows the class."""


class DrawnClass:
    """Recognises a class of the drawn world by mini's judge."""

    name = "mini's judge"

    def __init__(self, class_word: str) -> None:
        self._shape = class_word

    def shows(self, pictures: Sequence[Image]) -> list[bool]:
        """Return whether each picture shows the class."""
        return [reading.shape == self._shape for reading in readings.read(pictures)]


class ClipClass:
    """Recognises a class by CLIP without training, as the nearest of several texts (Radford et al. 2021, 3.1)."""

    def __init__(self, clip: Clip, class_word: str) -> None:
        self.name = f"CLIP {clip.name}"
        self._clip = clip
        texts = clip.texts([f"a photo of a {word}" for word in (class_word, *OTHER_CLASSES)])
        different = (texts[1:] @ texts[0]) < _ALIKE
        self._texts = texts[[0, *(1 + number for number, other in enumerate(different.tolist()) if other)]]

    def shows(self, pictures: Sequence[Image]) -> list[bool]:
        """Return whether each picture shows the class."""
        best = (self._clip.images(pictures) @ self._texts.T).argmax(1)
        return [number == 0 for number in best.tolist()]


def is_drawn_class(class_word: str) -> bool:
    """Return whether mini's judge knows a class."""
    return class_word in scene.SHAPES
