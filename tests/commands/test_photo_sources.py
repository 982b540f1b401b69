"""Photos come as files, folders and zips."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fastdb.commands import sessions
from fastdb.commands.photo_sources import photo_files
from fastdb.errors import ImageError
from fastdb.images.photo_files import photos_in


def zipped(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / "photos.zip"


def test_a_zip_of_photos_is_taken_with_its_captions(photos: list[Path], tmp_path: Path) -> None:
    files = {
        "trip/cup 1.png": photos[2].read_bytes(),
        "trip/cup 1.txt": b"on a table",
        "cat.PNG": photos[0].read_bytes(),
        "__MACOSX/trip/._cup 1.png": b"rest",
        ".DS_Store": b"rest",
        "notes.pdf": b"rest",
    }
    pytest.importorskip("torch")
    session = sessions.new("cup", "mini", [zipped(tmp_path, files)], token="sks", class_word="cup")
    assert [path.stem for path in photos_in(session.instance_images)] == ["cat", "cup 1"]
    assert (session.captions / "cup 1.txt").read_text(encoding="utf-8").strip() == "on a table"
    with photo_files([tmp_path / "photos.zip"]) as found:
        folder = found[0].parent
    assert not folder.exists()


@pytest.mark.parametrize(
    "files", [{"notes.txt": b"x"}, {"../cat.png": b"x"}, {"a/cat.png": b"x", "A/cat.png": b"y"}], ids=str
)
def test_a_zip_without_photos_or_with_hostile_names_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"photos\.zip"), photo_files([zipped(tmp_path, files)]):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["photos.zip"]


def test_a_file_that_only_looks_like_a_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"no zip")
    with pytest.raises(ImageError, match="Extract it"), photo_files([tmp_path / "photos.zip"]):
        pass
