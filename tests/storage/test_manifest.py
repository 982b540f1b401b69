"""Manifests of folders and their faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.errors import StorageError
from fastdb.storage import MANIFEST
from fastdb.storage.manifest import faults, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole folder."""
    folder = tmp_path / "whole"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 10)
    (folder / "inner" / "state.json").write_text("{}")
    write_manifest(folder)
    return folder


def test_a_whole_folder_has_no_faults(folder: Path) -> None:
    assert faults(folder) == []
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"weights", "inner/state.json"}


def test_a_file_more_is_no_fault(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"x")
    assert faults(folder) == []


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "inner" / "state.json").unlink()
    assert faults(folder) == ["state.json is missing", "weights is missing"]


def test_a_short_file_is_named_with_its_sizes(folder: Path) -> None:
    with (folder / "weights").open("r+b") as stream:
        stream.truncate(2000)
    assert faults(folder) == ["weights has 2000 bytes instead of 2560"]


def test_a_flipped_bit_is_found_wherever_it_is(folder: Path) -> None:
    data = (folder / "weights").read_bytes()
    for position in (0, 1, 1279, 2559):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            (folder / "weights").write_bytes(changed)
            assert faults(folder) == ["weights has changed since it was written"], (position, bit)
    (folder / "weights").write_bytes(data)
    assert faults(folder) == []


def test_no_flipped_bit_of_the_manifest_itself_passes_for_another_whole_folder(folder: Path) -> None:
    """Each either leads to a fault or means the same as before (a space, a digit written otherwise)."""
    data = (folder / MANIFEST).read_bytes()
    meaning, found = json.loads(data), 0
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            (folder / MANIFEST).write_bytes(changed)
            if not faults(folder):
                assert json.loads(changed) == meaning, (position, bit)
            else:
                found += 1
    assert found > 0.9 * 8 * len(data)


def test_a_folder_without_a_manifest_was_never_finished(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert faults(folder) == ["it has no manifest, so it was never finished"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"files"',
        "7",
        '{"files": []}',
        '{"files": {"weights": 3}}',
        '{"files": {"weights": {"bytes": "many", "sha256": "0"}}}',
        '{"files": {"weights": {"bytes": Infinity, "sha256": "0"}}}',
        '{"format": 1}',
        "\udcff",
    ],
)
def test_an_unreadable_manifest_is_a_fault(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    [fault] = faults(folder)
    assert fault.startswith("its manifest cannot be read")


def test_a_format_of_the_future_is_a_fault(folder: Path) -> None:
    record = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**record, "format": 2}))
    assert faults(folder) == ["its manifest has format 2; this version knows 1"]


def test_names_no_file_can_have_are_faults(folder: Path) -> None:
    record = json.loads((folder / MANIFEST).read_text())
    for name in ("a\0b", "x" * 300, "inner"):
        record["files"] = {name: {"bytes": 4096, "sha256": "0"}}
        (folder / MANIFEST).write_text(json.dumps(record))
        assert len(faults(folder)) == 1, name


def test_a_disk_that_is_full_before_the_manifest_is_said(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    (folder / "weights").write_bytes(bytes(1 << 20))
    with pytest.raises(StorageError, match="the disk is full"):
        write_manifest(folder)
    assert [path.name for path in folder.iterdir()] == ["weights"]
