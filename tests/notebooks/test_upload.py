"""The upload button adds the photos that a browser sends, in the forms of ipywidgets 7 and 8."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("ipywidgets")

import fastdb
from fastdb import notebook
from fastdb.errors import ImageError
from fastdb.images.photo_files import photos_in
from fastdb.notebook import upload


def test_both_forms_of_an_upload_are_saved_under_safe_names(tmp_path: Path) -> None:
    old = {"a.png": {"metadata": {}, "content": b"1"}, "../up.jpg": {"metadata": {}, "content": b"2"}}
    new = ({"name": "a.png", "content": memoryview(b"1")}, {"name": "C:\\x\\up.jpg", "content": memoryview(b"2")})
    for number, value in enumerate((old, new)):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = upload._saved(value, folder)
        assert {path.name: path.read_bytes() for path in paths} == {"a.png": b"1", "up.jpg": b"2"}
        assert {path.parent for path in paths} == {folder}


def test_the_button_adds_photos_to_the_session(home, photos, monkeypatch, capsys) -> None:
    import ipywidgets

    buttons = []

    class Button(ipywidgets.FileUpload):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            buttons.append(self)

    monkeypatch.setattr(ipywidgets, "FileUpload", Button)
    session = fastdb.open_or_new("mug", "mini", token="sks", class_word="mug")
    with pytest.raises(ImageError, match="Upload some above"):
        notebook.add_images(session)
    [button] = buttons
    for _ in range(2):  # the second time nothing is doubled
        button.value = tuple(
            {"name": path.name, "type": "image/png", "size": 1, "content": path.read_bytes(), "last_modified": _now()}
            for path in sorted(photos.iterdir())
        )
        button.value = ()
    assert [path.stem for path in photos_in(session.instance_images)] == ["astronaut", "cat", "coffee"]


def _now() -> object:
    from datetime import UTC, datetime

    return datetime.now(UTC)
