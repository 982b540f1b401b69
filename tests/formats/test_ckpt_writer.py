"""Direct I/O on disks with and without O_DIRECT, and zips beyond 4 GiB."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fastdb.formats import direct_io
from fastdb.formats.ckpt_writer import write_zip
from fastdb.formats.direct_io import BLOCK, blocks_of
from fastdb.formats.hashing_writer import Sink
from tests.faultfs.mount import Mount

LENGTHS = [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 4096, 3 * BLOCK + 5000]
WITHOUT = Path("/dev/shm")
"""A file system in memory; old kernels do not support O_DIRECT there."""


def content(length: int) -> bytes:
    return bytes(range(251)) * (length // 251) + bytes(length % 251)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("where", ["disk", "memory", "refused at writing"])
def test_written_bytes_are_read_back(where: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data, real = tmp_path / "a", content(length), os.write
    refused = 0
    if where == "memory":
        if not WITHOUT.is_dir():
            pytest.skip("this system has no file system in memory")
        path = WITHOUT / f"fastdb-{os.getpid()}-{length}"
    if where == "refused at writing":

        def picky(file: int, block: Any) -> int:
            """Refuse O_DIRECT only when writing, as some file systems do."""
            nonlocal refused
            import fcntl

            if direct_io.DIRECT and fcntl.fcntl(file, fcntl.F_GETFL) & direct_io.DIRECT:
                refused += 1
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(file, block[:100_000])

        monkeypatch.setattr(os, "write", picky)
    path.write_bytes(b"old" * BLOCK)
    try:
        with Sink(path) as sink:
            for start in range(0, length, 700_001):
                sink.write(data[start : start + 700_001])
                assert sink.position == min(start + 700_001, length)
            written = sink.finish()
        assert path.read_bytes() == data
        assert b"".join(map(bytes, blocks_of(path))) == data
        assert written.bytes == length
    finally:
        path.unlink()
    assert refused <= 1, "O_DIRECT is tried once"


@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_written_through_a_fuse_mount_are_read_back(length: int, tmp_path: Path) -> None:
    """The mount passes O_DIRECT on to a disk that rejects its unaligned memory."""
    with Mount(tmp_path) as drive, Sink(drive.path / "a") as sink:
        sink.write(content(length))
        sink.finish()
        assert (drive.path / "a").read_bytes() == content(length)
        assert b"".join(map(bytes, blocks_of(drive.path / "a"))) == content(length)


class Far:
    """A sink that starts after a hole."""

    def __init__(self, file: Any, start: int) -> None:
        self.file = file
        self.file.truncate(start)
        self.file.seek(start)

    @property
    def position(self) -> int:
        return int(self.file.tell())

    def write(self, data: bytes, name: str = "", crc: int | None = None) -> None:
        self.file.write(data)


@pytest.mark.parametrize("start", [0, 0xFFFFFFFF - 100, 0xFFFFFFFF, 1 << 33])
def test_zipfile_reads_a_zip_beyond_4_gib(start: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    records = {"archive/data.pkl": b"pickle", "archive/data/0": content(1000), "archive/data/1": b""}
    with path.open("wb") as file:
        write_zip(Far(file, start), [(name, data, "") for name, data in records.items()], 64)  # type: ignore[arg-type]
    with zipfile.ZipFile(path) as other, path.open("rb") as file:
        assert other.testzip() is None
        assert other.namelist() == list(records)
        assert {name: other.read(name) for name in records} == records
        for info in other.infolist():
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            begins = info.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            assert (begins + int.from_bytes(lengths[2:], "little")) % 64 == 0
            assert info.flag_bits == 0


def test_a_zip_may_have_70_000_records(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        write_zip(Far(file, 0), ((str(number), b"", "") for number in range(70_000)), 1)  # type: ignore[arg-type]
    with zipfile.ZipFile(path) as other:
        assert len(other.namelist()) == 70_000
