"""Crops of real photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdb.images import crop as crops
from fastdb.images.crop import Crop, choose_crop, crop_square
from fastdb.images.faces import Face
from fastdb.images.photos import read_photo

Shared = Callable[[str], Path]
Gallery = Callable[[str], Image.Image]


def inside(face: Face, crop: Crop) -> bool:
    left, top, right, bottom = crop.box
    return left <= face.left and top <= face.top and face.right <= right and face.bottom <= bottom


def in_picture(crop: Crop, image: Image.Image) -> bool:
    left, top, right, bottom = crop.box
    return 0 <= left < right <= image.width and 0 <= top < bottom <= image.height and right - left == bottom - top


@pytest.mark.parametrize("detector", ["YuNet", "LBP"], indirect=True)
@pytest.mark.parametrize("name", ["obama.jpg", "biden.jpg", "two_people.jpg"])
@pytest.mark.parametrize("size", [0, 512])
def test_the_largest_face_is_inside_the_crop(name: str, size: int, detector: str, shared: Shared) -> None:
    photo = read_photo(shared(f"data/faces/{name}"))
    crop = choose_crop(photo, size=size)
    assert inside(crop.faces[0], crop)
    assert in_picture(crop, photo)
    assert crop.reason.startswith(f"face ({detector}, 0.")
    if name == "two_people.jpg":
        assert len(crop.faces) == 2
        assert not inside(crop.faces[1], crop)


def test_a_face_cut_by_the_frame_is_inside_the_crop(yunet: None, shared: Shared) -> None:
    photo = read_photo(shared("data/faces/obama_partial_face.jpg"))
    crop = choose_crop(photo)
    assert inside(crop.faces[0], crop)
    assert crop.size == photo.width
    assert crop.top <= 83


def test_a_face_crop_has_head_and_shoulders_without_much_enlargement(gallery: Gallery) -> None:
    astronaut = gallery("astronaut")
    crop = choose_crop(astronaut)
    (face,) = crop.faces
    assert 2.5 <= crop.size / face.height <= 3
    assert crop.top + crop.size - face.bottom > face.height  # shoulders
    assert face.top - crop.top > 0.2 * face.height  # hair
    assert choose_crop(astronaut, size=768).size == 512
    assert choose_crop(astronaut, size=720).size == 480


def faces_are(monkeypatch: pytest.MonkeyPatch, *faces: Face) -> None:
    monkeypatch.setattr(crops, "detect_faces", lambda image, least: [face for face in faces if face.score >= least])


def test_a_face_at_any_position_is_inside_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((300, 200), (200, 300), (250, 250)):
        photo = Image.new("RGB", (width, height))
        for face_height in (20, 60, 150, 200):
            face_width = face_height * 3 // 4
            for left in range(0, width - face_width + 1, 25):
                for top in range(0, height - face_height + 1, 25):
                    face = Face(left, top, left + face_width, top + face_height, 0.95, "YuNet")
                    faces_are(monkeypatch, face)
                    crop = choose_crop(photo)
                    assert inside(face, crop), (face, crop)
                    assert in_picture(crop, photo), (face, crop)


def test_the_face_lies_above_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    faces_are(monkeypatch, Face(1000, 1000, 1150, 1200, 0.95, "YuNet"))
    crop = choose_crop(Image.new("RGB", (2000, 2000)))
    assert crop.size == 550
    assert abs(crop.left + 275 - 1075) <= 1
    assert 0.4 <= (1100 - crop.top) / crop.size <= 0.45


def test_a_face_larger_than_the_picture_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    faces_are(monkeypatch, Face(0, 90, 200, 390, 0.95, "YuNet"))
    crop = choose_crop(Image.new("RGB", (200, 400)))
    assert crop.size == 200
    assert 90 <= crop.top <= 190


def test_a_person_takes_precedence_over_a_larger_pet(monkeypatch: pytest.MonkeyPatch) -> None:
    pet, person = Face(500, 200, 800, 500, 0.75, "YuNet"), Face(100, 100, 180, 200, 0.93, "YuNet")
    faces_are(monkeypatch, pet, person)
    crop = choose_crop(Image.new("RGB", (900, 600)))
    assert crop.faces == (person, pet)
    assert crop.size == 275
    assert inside(person, crop)


def test_a_small_face_is_kept_in_view_without_zoom(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (900, 600))
    faces_are(monkeypatch, Face(850, 100, 890, 150, 0.95, "YuNet"))
    crop = choose_crop(photo)
    assert (crop.left, crop.size, crop.reason) == (290, 600, "small face kept in view (YuNet, 0.95)")
    faces_are(monkeypatch, Face(880, 100, 890, 112, 0.95, "YuNet"))
    assert choose_crop(photo).reason == "most detail"


@pytest.mark.parametrize("detector", ["YuNet", "LBP"], indirect=True)
@pytest.mark.parametrize(
    ("name", "head"),
    [  # by eye, ears included, in the square photo
        ("dog/00.jpg", (120, 60, 700, 560)),
        ("dog/01.jpg", (160, 60, 600, 420)),
        ("dog/02.jpg", (215, 130, 475, 390)),
        ("dog/03.jpg", (300, 165, 510, 380)),
        ("dog/04.jpg", (215, 10, 520, 350)),
        ("cat/01.jpg", (370, 30, 760, 420)),
        ("cat/03.jpg", (440, 140, 760, 480)),
        ("cat/04.jpg", (300, 60, 930, 830)),
    ],
)
@pytest.mark.parametrize("wide", [True, False])
def test_heads_of_dogs_and_cats_are_kept(
    name: str, head: tuple[int, int, int, int], wide: bool, detector: str, shared: Shared
) -> None:
    """Wide and tall pictures cut from the square ones, off the middle, so that the crop has to look."""
    photo = read_photo(shared(f"data/{name}"))
    left, top, right, bottom = head
    if wide:
        upper = max(0, min(top, photo.height - round(0.7 * photo.height)))
        photo = photo.crop((0, upper, photo.width, upper + round(0.7 * photo.height)))
        start, stop = left, right
    else:
        side = max(0, min((left + right - round(0.7 * photo.width)) // 2, photo.width - round(0.7 * photo.width)))
        photo = photo.crop((side, 0, side + round(0.7 * photo.width), photo.height))
        start, stop = top, bottom
    crop = choose_crop(photo)
    first = crop.left if wide else crop.top
    cut = max(first - start, stop - first - crop.size, 0)
    assert crop.size == min(photo.size)
    assert in_picture(crop, photo)
    assert cut <= 0.12 * (stop - start), (crop, head)


def test_an_off_centre_subject_is_followed(gallery: Gallery) -> None:
    cup = gallery("coffee").crop((100, 0, 500, 400)).resize((300, 300))
    for at in (0, 150, 500, 700):
        wide = Image.new("RGB", (1000, 300), (92, 60, 40))
        wide.paste(cup, (at, 0))
        assert abs(choose_crop(wide).left - at) < 60, at
        tall = Image.new("RGB", (300, 1000), (92, 60, 40))
        tall.paste(cup, (0, at))
        assert abs(choose_crop(tall).top - at) < 60, at


def test_plain_photos_are_cropped_at_the_expected_place_and_squares_kept(gallery: Gallery) -> None:
    assert choose_crop(Image.new("RGB", (500, 300), "white")) == Crop(100, 0, 300, "most detail")
    assert choose_crop(Image.new("RGB", (300, 300), "white")) == Crop(0, 0, 300, "used whole", whole=True)


def test_the_crop_is_deterministic(gallery: Gallery) -> None:
    assert choose_crop(gallery("coffee")) == choose_crop(gallery("coffee"))


def test_the_crop_is_resized(gallery: Gallery) -> None:
    photo = gallery("coffee")
    crop = Crop(150, 20, 380, "by hand")
    square = crop_square(photo, crop, 256)
    expected = photo.crop((150, 20, 530, 400)).resize((256, 256), Image.Resampling.LANCZOS)
    assert square.size == (256, 256)
    assert np.abs(np.asarray(square, dtype=int) - np.asarray(expected, dtype=int)).mean() < 1
    assert crop_square(photo, crop, 512).size == (512, 512)
