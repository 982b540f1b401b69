"""Photos come as files, folders and zips."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fastdb.commands import sessions
from fastdb.commands.photo_sources import photo_files
from fastdb.errors import ImageError
from fastdb.images.photo_files import photos_in
from fastdb.reporting import Note, Report


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


class Notes(Report):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)


def test_whatever_is_not_taken_from_a_folder_is_named(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more" / "day1").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in ("cat.png", "scan.tiff", "anim.gif", "web.avif", "noending", "more/a.png", "more/day1/b.png"):
        (folder / name).write_bytes(photos[0].read_bytes())
    (folder / "lost.jpg").symlink_to("/nowhere.jpg")
    (folder / "dir.jpg").mkdir()
    for name in ("cat.txt", "notes.txt", ".hidden", "Thumbs.db"):
        (folder / name).write_text("text")
    notes = Notes()
    with photo_files([folder], notes) as taken:
        assert [path.name for path in taken] == ["cat.png"]
    reasons = {note.subject: note.reason for note in notes.notes}
    other = "its ending is not that of a JPEG, PNG, WebP or BMP file"
    assert reasons == {
        **dict.fromkeys(("'anim.gif'", "'noending'", "'scan.tiff'", "'web.avif'"), other),
        "'lost.jpg'": "it is a broken link",
        "'more'": "subfolders are not searched; name it to add its 2 photos",
    }
    for number in range(20):
        (folder / f"{number}.raw").touch()
    notes = Notes()
    with photo_files([folder], notes):
        assert (len(notes.notes), notes.notes[-1].subject) == (11, f"16 further files in {folder}")


def test_whatever_is_not_taken_from_a_zip_is_named(photos: list[Path], tmp_path: Path) -> None:
    files = {"cat.png": photos[0].read_bytes(), "a/scan.tif": b"x", "__MACOSX/._cat.png": b"x", ".DS_Store": b"x"}
    notes = Notes()
    with photo_files([zipped(tmp_path, files)], notes):
        assert [note.subject for note in notes.notes] == ["'a/scan.tif'"]
