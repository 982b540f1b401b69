"""Face detection with YuNet, or with the cascade of scikit-image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdb.downloads.small_models import YUNET, fault, find
from fastdb.errors import ImageError
from fastdb.images.lbp_faces import find_faces
from fastdb.runtime.paths import cache_folder

YUNET_VARIABLE = "FASTDB_YUNET"

SURE = 0.85
"""Minimum score of a person's face; YuNet gave people 0.93 and more, dogs and cats up to 0.82."""
LIKELY = 0.65
"""Minimum score of a likely head, perhaps an animal's."""

_YUNET_SIDE = 640


@dataclass(frozen=True)
class Face:
    """A face's box in pixels, score (0 to 1) and detector."""

    left: int
    top: int
    right: int
    bottom: int
    score: float
    detector: str

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.bottom - self.top


@dataclass(frozen=True)
class Detector:
    """The face detector in use."""

    name: str
    """`YuNet`, `LBP` or `none`."""
    model: Path | None
    """YuNet's model file."""
    reason: str
    """Why this detector is used."""


def detect_faces(image: Image.Image, *, least: float = SURE) -> list[Face]:
    """Return the faces in an upright RGB image, largest first.

    Args:
        image: an upright RGB photo.
        least: the minimum score.

    Raises:
        ImageError: see `face_detector`.
    """
    detector = face_detector()
    if detector.model is not None:
        faces = _by_yunet(image, detector.model, least)
    elif detector.name == "LBP":
        # Below SURE the cascade's detections are as often a paw or a wheel as a head.
        detections = (face for face in find_faces(image) if face[4] >= max(least, SURE))
        faces = [_inside(image.size, *face, "LBP") for face in detections]
    else:
        faces = []
    return sorted(faces, key=lambda face: ((face.left - face.right) * face.height, face.left, face.top))


def face_detector() -> Detector:
    """Return the detector that `detect_faces` uses on this machine.

    Raises:
        ImageError: FASTDB_YUNET is set to a file that is missing or is not the YuNet model.
    """
    named = os.environ.get(YUNET_VARIABLE)
    model = Path(named).expanduser() if named else find(YUNET) or cache_folder() / YUNET
    reason = fault(model, YUNET)
    if named and reason:
        raise ImageError(
            f"{YUNET_VARIABLE} is set to this file, but it {reason}",
            where=named,
            fix=f"Correct {YUNET_VARIABLE}, or unset it.",
        )
    reason = reason or _opencv_fault(model)
    if not reason:
        return Detector("YuNet", model, f"its model file is present ({model})")
    try:
        from skimage.feature import Cascade  # noqa: F401
    except ImportError:
        return Detector("none", None, f"YuNet: {model} {reason}; LBP: scikit-image is not installed")
    return Detector("LBP", None, f"YuNet: {model} {reason}")


@lru_cache(maxsize=8)
def _opencv_fault(model: Path) -> str:
    """Return why OpenCV cannot run the model, or an empty string."""
    try:
        _yunet(model).detect(np.zeros((_YUNET_SIDE, _YUNET_SIDE, 3), dtype=np.uint8))
    except Exception as error:  # noqa: BLE001 - a broken cv2 fails in many ways: missing libraries, empty folder, ABI
        return f"cannot be used by OpenCV ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return ""


@lru_cache(maxsize=1)
def _yunet(model: Path) -> Any:
    import cv2

    # The file with a fixed shape of 640 x 640 loads in OpenCV 4.10 to 5.0, the file with a free shape in 5.0 only.
    return cv2.FaceDetectorYN.create(str(model), "", (_YUNET_SIDE, _YUNET_SIDE), 0.5, 0.3, 500)


def _by_yunet(image: Image.Image, model: Path, least: float) -> list[Face]:
    scale = _YUNET_SIDE / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    canvas = np.zeros((_YUNET_SIDE, _YUNET_SIDE, 3), dtype=np.uint8)
    canvas[:height, :width] = np.asarray(small)[:, :, ::-1]
    _, rows = _yunet(model).detect(canvas)
    if rows is None:
        return []
    across, down = image.width / width, image.height / height
    detections = ((*row[:4].tolist(), float(row[14])) for row in rows)
    return [
        _inside(image.size, x * across, y * down, (x + w) * across, (y + h) * down, score, "YuNet")
        for x, y, w, h, score in detections
        if score >= least
    ]


def _inside(
    picture: tuple[int, int], left: float, top: float, right: float, bottom: float, score: float, detector: str
) -> Face:
    """Return a face with its box rounded and clipped to the image."""
    width, height = picture
    return Face(
        max(0, round(left)),
        max(0, round(top)),
        min(width, round(right)),
        min(height, round(bottom)),
        round(score, 4),
        detector,
    )
