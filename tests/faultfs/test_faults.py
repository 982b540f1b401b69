"""Errors of the fake drive as a program receives them from the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faultfs.faults import KINDS
from tests.faultfs.mount import Mount


def fsync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


DO: dict[str, Callable[[Path], object]] = {
    "open": lambda folder: (folder / "file").read_bytes(),
    "create": lambda folder: (folder / "new").touch(),
    "read": lambda folder: (folder / "file").read_bytes(),
    "write": lambda folder: (folder / "file").write_bytes(b"other"),
    "flush": lambda folder: (folder / "file").write_bytes(b"other"),
    "fsync": lambda folder: (fsync(folder / "file"), fsync(folder)),
    "truncate": lambda folder: os.truncate(folder / "file", 2),
    "rename": lambda folder: (folder / "file").rename(folder / "new"),
    "unlink": lambda folder: (folder / "file").unlink(),
    "mkdir": lambda folder: (folder / "new").mkdir(),
    "rmdir": lambda folder: (folder / "empty").rmdir(),
    "getattr": lambda folder: (folder / "file").stat(),
    "setattr": lambda folder: (folder / "file").chmod(0o600),
    "readdir": lambda folder: os.listdir(folder),
    "xattr": lambda folder: os.getxattr(folder / "file", "user.drive.id"),
}


def test_every_kind_of_operation_fails_with_every_error(tmp_path: Path) -> None:
    assert set(DO) == set(KINDS)
    seen = 0
    with Mount(tmp_path) as drive:
        for kind, do in DO.items():
            for error in ("EIO", "ENOSPC", "ENOTCONN"):
                folder = drive.path / f"{kind}-{error}"
                (folder / "empty").mkdir(parents=True)
                (folder / "file").write_bytes(b"content")
                drive.reset()
                # The kernel looks a name up a second time when it knew it and the first look-up failed.
                drive.fail(kind, error=error, persistent=kind == "getattr")
                with pytest.raises(OSError, match=r".") as raised:
                    do(folder)
                assert raised.value.errno == getattr(errno, error), (kind, error)
                assert {line[0] for line in drive.log() if line[2]} == {kind}
                drive.heal()
                do(folder)
                seen += 1
    assert seen == 45


@pytest.mark.parametrize("persistent", [False, True])
def test_the_nth_fails_and_with_it_all_later_ones_if_so_said(persistent: bool, tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        (drive.path / "before").mkdir()
        drive.fail("mkdir", nth=3, error="EIO", persistent=persistent)
        for number in range(1, 6):
            with suppress(OSError):
                (drive.path / str(number)).mkdir()
        assert sorted(os.listdir(drive.path)) == (["1", "2"] if persistent else ["1", "2", "4", "5"]) + ["before"]
        (drive.path / "file").touch()
        drive.heal()
        (drive.path / "after").mkdir()


def test_a_short_write_reaches_the_program(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        file = os.open(drive.path / "file", os.O_CREAT | os.O_WRONLY)
        drive.fail("write", nth=2, error="SHORT")
        assert [os.write(file, b"x" * 1001) for _ in range(3)] == [1001, 500, 1001]
        drive.fail("write", error="SHORT", persistent=True)
        assert [os.write(file, b"yz") for _ in range(2)] == [1, 1]
        os.close(file)
        assert (drive.path / "file").read_bytes() == b"x" * 2502 + b"yy"
        drive.reset()
        (drive.path / "file").write_bytes(b"abc" * 1000)  # it asks again for the rest
        assert drive.counts()["write"] > 10
        assert (drive.path / "file").read_bytes() == b"abc" * 1000


def test_a_full_disk_takes_what_still_fits(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        drive.room(1500)
        file = os.open(drive.path / "file", os.O_CREAT | os.O_WRONLY)
        assert [os.write(file, bytes(1000)), os.write(file, bytes(1000))] == [1000, 500]
        with pytest.raises(OSError, match="No space left"):
            os.write(file, b"x")
        os.close(file)
        (drive.path / "file").unlink()
        with pytest.raises(OSError, match="No space left"):  # the trash counts too
            (drive.path / "other").write_bytes(b"x")
        drive.heal()
        (drive.path / "other").write_bytes(bytes(2000))


def test_a_listing_is_as_old_as_it_was_made(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        (drive.path / "old").touch()
        drive.stale(40)
        assert os.listdir(drive.path) == ["old"]
        (drive.path / "new").mkdir()
        (drive.path / "old").unlink()
        assert os.listdir(drive.path) == ["old"], "neither what came nor what went"
        assert (drive.path / "new").is_dir(), "whoever knows the name finds it"
        with pytest.raises(FileNotFoundError):
            (drive.path / "old").stat()
        for _ in range(40):
            os.path.exists(drive.path / "x")
        assert os.listdir(drive.path) == ["new"]
        (drive.path / "newer").mkdir()
        drive.heal()
        assert sorted(os.listdir(drive.path)) == ["new", "newer"]
