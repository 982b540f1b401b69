"""Face detection once per picture, for tests that make many sessions of the same few photos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from fastdb.images import crop
from fastdb.images.faces import Face

_known: dict[tuple[str, float], list[Face]] = {}


@contextmanager
def faces_detected_once() -> Iterator[None]:
    """Let crops take the faces of a picture that was seen before; detection takes four fifths of making a session."""
    detect = crop.detect_faces

    def detect_once(image: Image.Image, *, least: float) -> list[Face]:
        key = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(), least
        if key not in _known:
            _known[key] = detect(image, least=least)
        return list(_known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "detect_faces", detect_once)
        yield
