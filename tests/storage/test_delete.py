"""Deletion frees disk space and affects no other file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.storage import MANIFEST
from fastdb.storage.delete import bytes_of, remove
from fastdb.storage.manifest import faults, write_manifest

READER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print("mapped", flush=True)
sys.stdin.readline()
print(sum(view[:]), flush=True)
"""


def test_bytes_are_those_of_all_files_and_of_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(1000))
    (folder / "inner" / "b").write_bytes(bytes(200))
    (tmp_path / "elsewhere").write_bytes(bytes(100_000))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert bytes_of(folder) - os.lstat(folder / "link").st_size == 1200
    assert bytes_of(folder / "a") == 1000
    assert bytes_of(folder / "gone") == 0


def test_each_file_is_cut_to_nothing_before_it_is_deleted(tmp_path: Path) -> None:
    """A descriptor opened before keeps the file, as a trash would: nothing must be left in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(bytes(5000))
    opened = [os.open(folder / name, os.O_RDONLY) for name in ("a", "b")]
    assert remove(folder) == 10_000
    assert not folder.exists()
    assert [os.fstat(one).st_size for one in opened] == [0, 0]
    for one in opened:
        os.close(one)
    assert remove(folder) == 0


def test_what_others_hold_is_left_to_them(tmp_path: Path) -> None:
    """The target of a link, the other name of a file, and the bytes that a process has mapped."""
    folder, data = tmp_path / "folder", b"\x01" * 9000
    folder.mkdir()
    (tmp_path / "target").write_bytes(data)
    (folder / "link").symlink_to(tmp_path / "target")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "f").write_bytes(data)
    (folder / "folder-link").symlink_to(tmp_path / "files")
    (tmp_path / "other-name").write_bytes(data)
    os.link(tmp_path / "other-name", folder / "name")
    (folder / "mapped").write_bytes(data)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder / "mapped")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "mapped\n"
    remove(folder)
    assert not folder.exists()
    out, _ = reader.communicate("\n")
    assert (reader.returncode, out) == (0, "9000\n"), "cut under its reader, it ends by SIGBUS"
    for path in (tmp_path / "target", tmp_path / "files" / "f", tmp_path / "other-name"):
        assert path.read_bytes() == data


def test_cut_off_anywhere_nothing_is_left_that_verifies(cut_everywhere: Callable[[str], list[Path]]) -> None:
    folders = cut_everywhere("""
from fastdb.storage.manifest import write_manifest
from fastdb.storage.delete import remove
def prepare(folder):
    (folder / "one" / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (folder / "one" / name).write_bytes(b"data")
    write_manifest(folder / "one")
def work(folder):
    remove(folder / "one")
""")
    begun = 0
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        if len(files) == 4 and all(path.stat().st_size for path in files):
            assert faults(folder / "one") == []
            continue
        begun += 1
        assert not (folder / "one").exists() or faults(folder / "one")
        remove(folder / "one")
        assert os.listdir(folder) == []
    assert begun >= 8


def test_the_manifest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("A", "z"):
        (folder / name).write_bytes(b"data")
    write_manifest(folder)
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **rest: (gone.append(self.name), unlink(self, **rest)))
    remove(folder)
    assert gone[0] == MANIFEST
    assert sorted(gone) == ["A", MANIFEST, "z"]


def test_what_cannot_be_removed_is_told_by_the_system(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    (disk / "one").mkdir()
    (disk / "one" / "file").write_bytes(bytes(100_000))
    before = os.statvfs(disk).f_bfree
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        remove(disk / "one")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert bytes_of(disk / "one") == 100_000
    assert remove(disk / "one") == 100_000
    assert os.statvfs(disk).f_bfree >= before + 100_000 // os.statvfs(disk).f_bsize
