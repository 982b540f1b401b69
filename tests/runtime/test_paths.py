"""Order in which the sessions folder is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdb.runtime import paths


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paths, "DRIVES", (tmp_path / "drive", tmp_path / "gdrive"))
    monkeypatch.delenv("FASTDB_ROOT")
    monkeypatch.delenv("FASTDB_CACHE")
    return tmp_path / "home"


def test_where_sessions_lie(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.sessions_root() == home / "Fast-Dreambooth" / "Sessions"
    (tmp_path / "gdrive").mkdir()
    assert paths.sessions_root() == tmp_path / "gdrive" / "Fast-Dreambooth" / "Sessions"
    (tmp_path / "drive").mkdir()
    assert paths.sessions_root() == tmp_path / "drive" / "Fast-Dreambooth" / "Sessions"
    monkeypatch.setenv("FASTDB_ROOT", "~/mine")
    assert paths.sessions_root() == home / "mine"
    assert paths.sessions_root(tmp_path / "given") == tmp_path / "given"


def test_where_what_can_be_made_again_lies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.cache_folder() == home / ".cache" / "fastdb"
    monkeypatch.setenv("FASTDB_CACHE", "~/big")
    assert paths.cache_folder() == home / "big"


def test_a_relative_one_is_that_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.sessions_root("here") == tmp_path / "here"


def test_a_name_that_only_begins_like_a_home_is_a_name(home: Path) -> None:
    assert paths.expanded("~no-such-user.jpg") == Path("~no-such-user.jpg")
    assert paths.expanded("~/x") == home / "x"


def test_each_session_has_its_own_work_folder_on_this_machine(home: Path, tmp_path: Path) -> None:
    dog, other = tmp_path / "a" / "dog", tmp_path / "b" / "dog"
    assert paths.work_folder(dog) != paths.work_folder(other)
    assert paths.work_folder(dog).parent == home / ".cache" / "fastdb" / "work"
    dog.mkdir(parents=True)
    (tmp_path / "link").symlink_to(dog)
    assert paths.work_folder(tmp_path / "link") == paths.work_folder(dog)
    assert paths.work_folder(tmp_path / "a" / "x" / ".." / "dog") == paths.work_folder(dog)
