"""Faces on real photos with both detectors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastdb.downloads.small_models import YUNET
from fastdb.errors import ImageError
from fastdb.images.faces import LIKELY, Face, detect_faces, face_detector
from fastdb.images.photos import read_photo

Shared = Callable[[str], Path]
Gallery = Callable[[str], Image.Image]


def overlap(face: Face, box: tuple[int, int, int, int]) -> float:
    """Intersection over union of a face with a box."""
    across = min(face.right, box[2]) - max(face.left, box[0])
    down = min(face.bottom, box[3]) - max(face.top, box[1])
    common = max(across, 0) * max(down, 0)
    return common / ((face.right - face.left) * face.height + (box[2] - box[0]) * (box[3] - box[1]) - common)


@pytest.mark.parametrize("detector", ["YuNet", "LBP"], indirect=True)
@pytest.mark.parametrize(
    ("name", "boxes"),
    [  # by eye: forehead to chin, ear to ear; largest first
        ("obama.jpg", [(370, 90, 605, 420)]),
        ("biden.jpg", [(425, 180, 705, 575)]),
        ("two_people.jpg", [(790, 50, 940, 255), (235, 25, 385, 225)]),
    ],
)
def test_people_are_found(name: str, boxes: list[tuple[int, int, int, int]], detector: str, shared: Shared) -> None:
    faces = detect_faces(read_photo(shared(f"data/faces/{name}")))
    assert [face.detector for face in faces] == [detector] * len(boxes)
    for face, box in zip(faces, boxes, strict=True):
        assert overlap(face, box) > 0.6


@pytest.mark.parametrize("detector", ["YuNet", "LBP"], indirect=True)
def test_the_astronaut_is_detected_but_not_cat_coffee_or_rocket(detector: str, gallery: Gallery) -> None:
    (face,) = detect_faces(gallery("astronaut"))
    assert overlap(face, (180, 55, 275, 180)) > 0.6
    assert face.detector == detector
    for name in ("cat", "coffee", "rocket"):
        assert detect_faces(gallery(name)) == [], name


@pytest.mark.parametrize("detector", ["YuNet", "LBP"], indirect=True)
def test_dogs_and_cats_are_not_detected_as_people(detector: str, shared: Shared) -> None:
    photos = sorted([*shared("data/dog").glob("*.jpg"), *shared("data/cat").glob("*.jpg")])
    assert len(photos) == 10
    assert [photo.name for photo in photos if detect_faces(read_photo(photo))] == []


def test_yunet_returns_likely_heads_on_request(yunet: None, shared: Shared) -> None:
    (face,) = detect_faces(read_photo(shared("data/dog/01.jpg")), least=LIKELY)
    assert overlap(face, (190, 105, 540, 410)) > 0.8


def test_the_cascade_returns_only_sure_faces(shared: Shared) -> None:
    """It found a likely head in a dog's ear, and the crop moved there."""
    from fastdb.images.lbp_faces import find_faces

    photo = read_photo(shared("data/dog/02.jpg"))
    assert find_faces(photo)
    assert detect_faces(photo, least=0.0) == []


def test_the_box_of_a_face_is_clipped_to_the_image(yunet: None, shared: Shared) -> None:
    (face,) = detect_faces(read_photo(shared("data/faces/obama_partial_face.jpg")))
    assert face.left == 0
    assert face.right > 150


def test_extreme_shapes_do_not_break_either_detector(yunet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ((64, 6000), (6000, 64), (64, 64)):
        assert detect_faces(Image.new("RGB", size, "grey")) == []
    monkeypatch.delenv("FASTDB_YUNET")
    for size in ((64, 6000), (6000, 64), (64, 64)):
        assert detect_faces(Image.new("RGB", size, "grey")) == []


def test_the_cached_model_is_used_unless_damaged(shared: Shared, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    data = shared("models/yunet_n_640_640.onnx").read_bytes()
    cached = tmp_path / "cache" / YUNET
    cached.parent.mkdir()
    cached.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert face_detector().name == "LBP"
    assert "checksum mismatch" in face_detector().reason
    cached.write_bytes(data)
    assert face_detector().name == "YuNet"
    assert face_detector().model == cached


def test_a_configured_model_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_YUNET", str(tmp_path / "no.onnx"))
    with pytest.raises(ImageError, match=r"no\.onnx: FASTDB_YUNET is set to this file, but it does not exist. Correct"):
        detect_faces(Image.new("RGB", (100, 100)))
    (tmp_path / "no.onnx").write_bytes(b"something else")
    with pytest.raises(ImageError, match=f"it is not {YUNET}"):
        face_detector()


def test_without_opencv_and_scikit_image_no_faces_are_detected(
    yunet: None, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdb.images import faces

    astronaut = gallery("astronaut")
    faces._yunet.cache_clear()
    faces._opencv_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))  # what uninstalling one of two OpenCVs leaves behind
    assert face_detector().name == "LBP"
    assert "cannot be used by OpenCV" in face_detector().reason
    assert len(detect_faces(astronaut)) == 1
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    assert face_detector().name == "none"
    assert detect_faces(astronaut) == []
    faces._opencv_fault.cache_clear()
