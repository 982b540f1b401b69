"""A folder appears whole or not at all, and nothing that makes way is overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdb.errors import StorageError
from fastdb.storage.set_aside import next_aside
from fastdb.storage.staged_folder import staged_folder


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    path, hidden = tmp_path / "cup", tmp_path / ".unfinished-cup"
    hidden.mkdir()
    (hidden / "left by a killed process").touch()
    with staged_folder(path, hidden) as staged:
        (staged / "file").touch()
        assert not path.exists()
    assert os.listdir(tmp_path) == ["cup"]
    assert os.listdir(path) == ["file"]


def test_after_an_error_no_folder_is_left(tmp_path: Path) -> None:
    with pytest.raises(StorageError), staged_folder(tmp_path / "cup", tmp_path / ".cup") as staged:
        staged.read_bytes()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_existing_folder_or_file_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cup"
    path.mkdir() if kind == "folder" else path.touch()
    (path / "own" if kind == "folder" else tmp_path / "own").touch()
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(FileExistsError), staged_folder(path, tmp_path / ".cup") as staged:
        (staged / "file").touch()
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_numbers_of_names_set_aside_are_not_used_twice(tmp_path: Path) -> None:
    assert next_aside(tmp_path).name == "set-aside-1"
    (tmp_path / "set-aside-1").mkdir()
    (tmp_path / "in-use.set-aside-1").symlink_to("nothing")
    assert next_aside(tmp_path).name == "set-aside-2"
    assert next_aside(tmp_path, "in-use.").name == "in-use.set-aside-2"
