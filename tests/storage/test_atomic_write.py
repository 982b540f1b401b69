"""Atomic writes that are interrupted, killed, or meet a full or read-only disk."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.errors import StorageError
from fastdb.storage.atomic_write import (
    TEMPORARY,
    explained,
    make_folder,
    unfinished,
    write_bytes,
    write_json,
    write_text,
    writing,
)

OLD, NEW = b"old " * 30_000, b"new " * 50_000


def test_files_are_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")
    write_text(path, "zwei \N{SNOWMAN}")
    assert path.read_bytes() == "zwei \N{SNOWMAN}".encode()
    write_json(path, {"a": [1, "\N{SNOWMAN}"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "\N{SNOWMAN}"]}
    assert os.listdir(tmp_path) == ["file"]


def interrupted(beside: Path) -> None:
    beside.write_bytes(NEW)
    raise KeyboardInterrupt


def test_an_error_inside_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(KeyboardInterrupt), writing(path) as beside:
        interrupted(beside)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_cut_at_each_point_it_is_the_old_file_or_the_new_one(cut_everywhere: Callable[[str], list[Path]]) -> None:
    folders = cut_everywhere("""
from fastdb.storage.atomic_write import writing
def prepare(folder):
    (folder / "file").write_bytes(b"old " * 30_000)
def work(folder):
    with writing(folder / "file") as beside, beside.open("wb") as stream:
        for _ in range(5):
            stream.write(b"new " * 10_000)
            stream.flush()
            sys.audit("cut")
""")
    found = [(folder / "file").read_bytes() for folder in folders]
    assert set(found) == {OLD, NEW}
    assert found.count(OLD) >= 7, "the cuts inside the block, and before the rename"
    assert found[-1] == NEW
    for folder in folders[:-1]:
        rest = {path.name for path in folder.iterdir()} - {"file"}
        assert {path.name for path in unfinished(folder / "file")} == rest
        assert all(name.startswith(".file.") and name.endswith(TEMPORARY) for name in rest)
    assert os.listdir(folders[-1]) == ["file"]


WRITER = """
import sys
from pathlib import Path
from fastdb.storage.atomic_write import flush, writing
number = int(sys.argv[2])
while True:
    number += 1
    with writing(Path(sys.argv[1])) as beside, beside.open("wb") as stream:
        for _ in range(10):
            stream.write((b"%08d" % number) * 5_000)
            stream.flush()
            flush(beside)
    print(number, flush=True)
"""


def test_killed_at_random_moments_it_is_whole_and_not_older_than_what_was_said(tmp_path: Path) -> None:
    path, chance, said, kills, cut_off = tmp_path / "file", random.Random(1), 0, 0, 0
    path.write_bytes(b"%08d" % 0 * 50_000)
    while kills < 15 or cut_off < 5:
        assert kills < 200, f"only {cut_off} of {kills} kills hit a write"
        kills += 1
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(said)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
            said = max([said, *(int(line) for line in writer.stdout.read().splitlines())])
        data = path.read_bytes()
        assert len(data) == 400_000
        assert data == data[:8] * 50_000, "half of one and half of another"
        assert int(data[:8]) >= said
        said = int(data[:8])
        for rest in tmp_path.glob(f".*{TEMPORARY}"):
            rest.unlink()
            cut_off += 1


def test_a_full_disk_leaves_the_old_file_alone(small_disk: Callable[[str], Path]) -> None:
    path = small_disk("1m") / "file"
    write_bytes(path, OLD)
    with pytest.raises(StorageError, match=rf"^{path}: the disk is full; existing files are unchanged\. Free"):
        write_bytes(path, bytes(2_000_000))
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == ["file"]
    write_bytes(path, NEW)
    assert path.read_bytes() == NEW


def test_a_read_only_disk_is_said(small_disk: Callable[[str], Path]) -> None:
    path = small_disk("1m") / "file"
    write_bytes(path, OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
    with pytest.raises(StorageError, match=rf"^{path}: the disk is read-only\. Mount it"):
        write_bytes(path, NEW)
    with pytest.raises(StorageError, match="the disk is read-only"):
        make_folder(path.parent / "inner")
    assert path.read_bytes() == OLD


def test_a_forbidden_folder_is_said(tmp_path: Path, forbidden: list[str]) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "file").write_bytes(OLD)
    folder.chmod(0o555)
    script = "import sys; from pathlib import Path; from fastdb.storage.atomic_write import write_bytes\n"
    script += "write_bytes(Path(sys.argv[1]), b'new')"
    command = [*forbidden, sys.executable, "-c", script, str(folder / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"StorageError: {folder / 'file'}: permission denied." in done.stderr
    assert (folder / "file").read_bytes() == OLD


@pytest.mark.parametrize("folder", ["/proc", "/proc/self/fastdb"])
def test_where_no_file_can_be_there_is_a_line(folder: str) -> None:
    with pytest.raises(StorageError, match=r"/proc"):
        make_folder(Path(folder) / "new")
    if Path(folder).is_dir():
        return
    with pytest.raises(StorageError, match="there is no such folder"):
        write_bytes(Path(folder) / "file", b"")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "far").write_bytes(OLD)
    (tmp_path / "link").symlink_to("far")
    write_bytes(tmp_path / "link", NEW)
    assert (tmp_path / "far").read_bytes() == OLD
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == NEW


def test_names_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, line in (
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("x" * 250), "File name too long"),
        (tmp_path / "file" / "inner", "there is no such folder"),
        (tmp_path / "gone" / "inner", "there is no such folder"),
    ):
        with pytest.raises(StorageError, match=line) as caught:
            write_bytes(path, NEW)
        assert TEMPORARY not in str(caught.value)
    with pytest.raises(StorageError, match="is not a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="is not a folder"):
        make_folder(tmp_path / "file" / "inner")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "does not answer"),
        (errno.ENOTCONN, "does not answer"),
        (errno.ESTALE, "does not answer"),
        (errno.ETIMEDOUT, "does not answer"),
        (errno.ELOOP, "cannot be used"),
    ],
)
def test_each_refusal_has_its_sentence(number: int, said: str) -> None:
    path = Path("some") / "file"
    with pytest.raises(StorageError, match=said) as caught, explained(path):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith((f"{path}: ", f"{path} cannot"))
    assert caught.value.fix


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no"), FileExistsError(errno.EEXIST, "yes")])
def test_what_only_the_caller_understands_stays_as_it_is(error: OSError) -> None:
    with pytest.raises(type(error)), explained(Path("file")):
        raise error


LIMITED = """
import resource, sys
from pathlib import Path
from fastdb.errors import StorageError
from fastdb.storage.atomic_write import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
write_bytes(path, b"old")
try:
    write_bytes(path, bytes(10_000))
except StorageError as error:
    print(error)
print(path.read_bytes())
"""


def test_a_file_too_large_for_its_disk_is_told_as_that(tmp_path: Path) -> None:
    """A limit of the process stands for a disk with FAT32: both give EFBIG."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "file")], capture_output=True, text=True, check=False
    )
    message, kept = done.stdout.splitlines()
    assert "does not allow a file of this size; existing files are unchanged" in message, done.stderr
    assert "FAT32 ends at 4 GB" in message
    assert kept == "b'old'"
