"""Files that are moved out of the way get a numbered folder and lose nothing."""

from __future__ import annotations

from pathlib import Path

from fastdb.storage.set_aside import move_aside


def test_nothing_to_move_makes_no_folder(tmp_path: Path) -> None:
    assert move_aside(tmp_path / "missing", []) is None
    assert list(tmp_path.iterdir()) == []


def test_each_move_gets_the_next_free_number(tmp_path: Path) -> None:
    (tmp_path / "set-aside-1").mkdir()
    for name in ("a", "b", "kept"):
        (tmp_path / name).write_text(name)
    assert move_aside(tmp_path, [tmp_path / "a", tmp_path / "b"]) == tmp_path / "set-aside-2"
    (tmp_path / "a").write_text("again")
    assert move_aside(tmp_path, [tmp_path / "a"]) == tmp_path / "set-aside-3"
    contents = {
        path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert contents == {"kept": "kept", "set-aside-2/a": "a", "set-aside-2/b": "b", "set-aside-3/a": "again"}
