"""Intake of photos, which are kept, cropped, captioned and named."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastdb.errors import ImageError, StorageError
from fastdb.images.captions import instance_images_of
from fastdb.images.crop import crop_square
from fastdb.images.intake import add_photos
from fastdb.images.photo_files import find_photos
from fastdb.images.photos import read_photo

Folders = tuple[Path, Path, Path]
Gallery = Callable[[str], Image.Image]


@pytest.fixture
def photos(tmp_path: Path, gallery: Gallery) -> Path:
    """A folder of three usable photos, the second with a caption, and two unusable files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    gallery("coffee").save(folder / "sks_cup (1).jpg", quality=95)
    gallery("rocket").save(folder / "sks_cup (2).png")
    gallery("astronaut").save(folder / "sks_cup (10).webp")
    (folder / "sks_cup (2).txt").write_text("on a table, grün\n", encoding="utf-8")
    (folder / "sks_cup (3).jpg").write_bytes(b"not a photo")
    (folder / "sks_cup (4).heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_usable_photos_are_imported_and_others_refused_with_reasons(photos: Path, folders: Folders) -> None:
    originals, instance_images, captions = folders
    calls: list[tuple[int, int]] = []
    intake = add_photos(*folders, find_photos([photos]), 128, lambda *call: calls.append(call))
    assert [each.name for each in intake.added] == ["sks_cup (1)", "sks_cup (2)", "sks_cup (10)"]
    assert [each.source.name for each in intake.refused] == ["sks_cup (3).jpg", "sks_cup (4).heic"]
    assert "is not a supported image" in intake.refused[0].reason
    assert "Export the photo as JPEG" in intake.refused[1].reason
    assert calls[0] == (1, 5)
    assert calls[-1] == (5, 5)
    assert len(calls) == 5
    assert names(originals) == ["sks_cup (1).jpg", "sks_cup (10).webp", "sks_cup (2).png"]
    assert names(captions) == ["sks_cup (2).txt"]
    for each in intake.added:
        assert (originals / each.source.name).read_bytes() == each.source.read_bytes()
        with Image.open(instance_images / f"{each.name}.png") as square:
            assert (square.size, square.mode, square.format) == ((128, 128), "RGB", "PNG")
            assert square.tobytes() == crop_square(read_photo(each.source), each.crop, 128).tobytes()
    assert intake.added[2].crop.reason.startswith("face (LBP, 0.9")
    found = instance_images_of(instance_images, captions, None)
    assert [(each.path.name, each.prompt) for each in found] == [
        ("sks_cup (1).png", "sks cup"),
        ("sks_cup (2).png", "sks cup on a table, grün"),
        ("sks_cup (10).png", "sks cup"),
    ]
    assert instance_images_of(instance_images, captions, "a photo of sks cup")[1].prompt.startswith(
        "a photo of sks cup on"
    )


def test_photos_that_were_imported_before_stay_unless_a_caption_or_the_size_changes(
    photos: Path, folders: Folders
) -> None:
    add_photos(*folders, find_photos([photos]), 128)
    before = [names(folder) for folder in folders]
    (photos / "sks_cup (2).txt").write_text("in the sky", encoding="utf-8")
    intake = add_photos(*folders, find_photos([photos]), 96)
    assert [names(folder) for folder in folders] == before
    assert [added.name for added in intake.added] == ["sks_cup (2)"]
    assert len(intake.known) == 2
    assert (folders[2] / "sks_cup (2).txt").read_text(encoding="utf-8").strip() == "in the sky"
    assert sorted(read_photo(path).width for path in folders[1].iterdir()) == [96, 128, 128]
    again = add_photos(*folders, own := find_photos([folders[0]]), 64, again=own)  # the session's own originals
    assert {read_photo(path).width for path in folders[1].iterdir()} == {64}
    assert [names(folder) for folder in folders] == before
    assert len(again.added) == 3
    assert (folders[2] / "sks_cup (2).txt").read_text(encoding="utf-8").strip() == "in the sky"


def test_another_photo_with_the_same_stem_gets_a_number(tmp_path: Path, folders: Folders, gallery: Gallery) -> None:
    given = []
    for folder, name, subject in (("a", "cup.png", "coffee"), ("b", "cup.png", "rocket"), ("c", "Cup.jpg", "cat")):
        path = tmp_path / folder / name
        path.parent.mkdir()
        gallery(subject).save(path)
        path.with_suffix(".txt").write_text(subject, encoding="utf-8")
        given.append(path)
    assert [each.name for each in add_photos(*folders, given, 64).added] == ["cup", "cup (2)", "Cup (3)"]
    assert add_photos(*folders, given, 64).known == ("cup", "cup (2)", "Cup (3)")
    assert names(folders[0]) == ["Cup (3).jpg", "cup (2).png", "cup.png"]
    assert [path.read_text().strip() for path in sorted(folders[2].iterdir())] == ["cat", "rocket", "coffee"]
    assert sorted(each.prompt for each in instance_images_of(folders[1], folders[2], None)) == [
        "Cup cat",
        "cup coffee",
        "cup rocket",
    ]


def test_an_image_copied_into_the_folder_by_hand_is_used(folders: Folders, photos: Path, gallery: Gallery) -> None:
    _originals, instance_images, captions = folders
    instance_images.mkdir(parents=True)
    gallery("cat").save(instance_images / "sks_cup (1).webp")
    dropped = (instance_images / "sks_cup (1).webp").read_bytes()
    intake = add_photos(*folders, [photos / "sks_cup (1).jpg"], 64)
    assert intake.added[0].name == "sks_cup (1) (2)"
    assert (instance_images / "sks_cup (1).webp").read_bytes() == dropped
    found = instance_images_of(instance_images, captions, None)
    assert [(each.path.name, each.prompt) for each in found] == [
        ("sks_cup (1) (2).png", "sks cup"),
        ("sks_cup (1).webp", "sks cup"),
    ]


def test_each_prompt_is_also_returned_without_its_caption(folders: Folders, gallery: Gallery) -> None:
    _originals, instance_images, captions = folders
    for folder in (instance_images, captions):
        folder.mkdir(parents=True)
    for stem, caption in (("sks_cup (1)", "on a table"), ("sks_cup (2)", ""), ("20240101", "a cup in snow")):
        gallery("cat").save(instance_images / f"{stem}.png")
        (captions / f"{stem}.txt").write_text(caption)
    prompts = {
        image.path.stem: (image.prompt, image.bare) for image in instance_images_of(instance_images, captions, None)
    }
    assert prompts == {
        "sks_cup (1)": ("sks cup on a table", "sks cup"),
        "sks_cup (2)": ("sks cup", "sks cup"),
        "20240101": ("a cup in snow", "a cup in snow"),  # nothing is left of the name
    }
    images = instance_images_of(instance_images, captions, "a photo of sks cup")
    assert {image.bare for image in images} == {"a photo of sks cup"}
    assert {image.prompt for image in images} >= {"a photo of sks cup on a table", "a photo of sks cup"}


def test_an_empty_session_is_refused_with_the_command_to_run(folders: Folders) -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match=r"the folder has no instance images. Run add-images"):
            instance_images_of(folders[1], folders[2], None)
        folders[1].mkdir(parents=True, exist_ok=True)


def test_unusable_file_names_are_refused(tmp_path: Path, folders: Folders, gallery: Gallery) -> None:
    composed = "größe_cup"
    gallery("coffee").save(tmp_path / f"{unicodedata.normalize('NFD', composed)}.png")
    gallery("coffee").save(tmp_path / f"{'x' * 220}.png")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    gallery("coffee").save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", strange)
    intake = add_photos(*folders, [*find_photos([tmp_path])], 64)
    assert [each.name for each in intake.added] == [unicodedata.normalize("NFC", composed)]
    assert sorted(each.reason for each in intake.refused) == [
        "the file's name is not text. Rename the photo.",
        "the file's name is too long. Give the photo a shorter name.",
    ]


def test_a_photo_with_an_unreadable_caption_is_refused(photos: Path, folders: Folders) -> None:
    (photos / "sks_cup (2).txt").write_bytes("grün".encode("utf-16"))
    intake = add_photos(*folders, [photos / "sks_cup (2).png"], 64)
    assert not intake.added
    assert "not UTF-8 text" in intake.refused[0].reason
    assert [names(folder) for folder in folders] == [[], [], []]


@pytest.mark.parametrize("at", range(1, 4))
def test_an_import_stopped_by_a_full_disk_is_completed_by_the_next(
    at: int, photos: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at each of the three writes of a photo: nothing half-written, and no double afterwards."""
    real = os.replace
    calls = []

    def filling(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    photo = photos / "sks_cup (2).png"
    monkeypatch.setattr(os, "replace", filling)
    with pytest.raises(StorageError, match="the disk is full"):
        add_photos(*folders, [photo], 64)
    assert not list(folders[1].iterdir())
    assert not [path for folder in folders for path in folder.iterdir() if path.name.endswith(".part")]
    monkeypatch.undo()
    add_photos(*folders, [photo], 64)
    assert [names(folder) for folder in folders] == [["sks_cup (2).png"], ["sks_cup (2).png"], ["sks_cup (2).txt"]]


def test_an_unusable_detector_is_reported_once_and_first(
    photos: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDB_YUNET", str(tmp_path / "missing.onnx"))
    with pytest.raises(ImageError, match="FASTDB_YUNET"):
        add_photos(*folders, find_photos([photos]), 64)
    assert not folders[0].exists()
