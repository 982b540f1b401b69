"""Mounting, unmounting and request counts of the fake drive."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.faultfs import mount
from tests.faultfs.faults import KINDS
from tests.faultfs.mount import Mount
from tests.requires import missing_for_fuse, requires_fuse


def mounted(path: Path) -> bool:
    return f" {path} fuse.faultfs " in Path("/proc/mounts").read_text()


def python(code: str, *arguments: object) -> str:
    """What a program in a process of its own says."""
    command = [sys.executable, "-c", f"import os, sys\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_what_is_written_is_read_by_another_process(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        assert mounted(drive.path)
        data = os.urandom(3_000_000)
        (drive.path / "folder").mkdir()
        (drive.path / "folder" / "file").write_bytes(data)
        assert python("print(len(open(sys.argv[1], 'rb').read()))", drive.path / "folder" / "file") == "3000000"
        assert (drive.path / "folder" / "file").read_bytes() == data
        assert (drive.disk / "folder" / "file").read_bytes() == data
        (drive.path / "folder").rename(drive.path / "other")
        with (drive.path / "other" / "file").open("r+b") as stream:
            stream.truncate(5)
        with (drive.path / "other" / "file").open("ab") as stream:
            stream.write(b"more")
        assert (drive.path / "other" / "file").read_bytes() == data[:5] + b"more"
        assert os.listdir(drive.path) == ["other"]
        (drive.path / "other" / "file").unlink()
        (drive.path / "other").rmdir()
        assert os.listdir(drive.path) == os.listdir(drive.disk) == []


def test_the_drive_is_unmounted_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Mount(tmp_path) as drive, (drive.path / "open").open("w"):
        raise ZeroDivisionError
    assert not mounted(drive.path)
    assert drive.server is None


def test_the_drive_is_unmounted_when_its_process_was_killed(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        assert drive.server is not None
        drive.server.send_signal(signal.SIGKILL)
        drive.server.wait()
        assert mounted(drive.path)
        with pytest.raises(OSError, match=r"."):
            os.listdir(drive.path)
    assert not mounted(drive.path)


@requires_fuse
def test_the_drive_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from tests.faultfs.mount import Mount
with Mount(Path(sys.argv[1])) as drive:
    print(drive.path, flush=True)
    os.kill(os.getpid(), 9)
"""
    path = Path(python(f"sys.path.insert(0, {str(mount.REPOSITORY)!r})\n{code}", tmp_path))
    assert path.parent == tmp_path
    until = time.monotonic() + 20
    while mounted(path):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_where_nothing_can_be_mounted_the_test_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = missing_for_fuse.__wrapped__
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    monkeypatch.setattr(mount, "missing_for_fuse", find)
    with pytest.raises(pytest.skip.Exception, match="needs mfusepy"), Mount(tmp_path):
        pass
    monkeypatch.setitem(sys.modules, "mfusepy", ModuleType("mfusepy"))
    monkeypatch.setenv("PATH", "")
    assert find() == "needs fusermount3 (Debian's package fuse3)"
    assert list(tmp_path.iterdir()) == []


def test_without_libfuse_the_reason_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import of mfusepy itself fails there, with an OSError."""
    (tmp_path / "mfusepy.py").write_text("raise OSError('Unable to find libfuse')")
    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert missing_for_fuse.__wrapped__() == "needs libfuse (Debian's package fuse3)"


def test_operations_are_counted_and_logged_the_same_each_time(tmp_path: Path) -> None:
    logs = []
    with Mount(tmp_path) as drive:
        for name in ("one", "two"):
            drive.reset()
            (drive.path / name).mkdir()
            (drive.path / name / "file").write_bytes(b"x")
            os.chmod(drive.path / name / "file", 0o600)
            with (drive.path / name / "file").open("r+b") as stream:
                assert stream.read() == b"x"
                stream.truncate(0)
                os.fsync(stream)
            os.replace(drive.path / name / "file", drive.path / name / "other")
            os.getxattr(drive.path / name / "other", "user.drive.id")
            assert os.listdir(drive.path / name) == ["other"]
            (drive.path / name / "other").unlink()
            (drive.path / name).rmdir()
            logs.append([(kind, path.replace(name, "-"), error) for kind, path, error in drive.log()])
            counts = drive.counts()
            assert sum(counts.values()) == len(logs[-1])
            assert set(counts) == set(KINDS)
            assert {kind for kind, number in counts.items() if number == 1} >= {"mkdir", "create", "rename", "rmdir"}
    assert logs[0] == logs[1]
    assert ("rename", "/-/file", "") in logs[0]


def test_what_drive_has_not_is_refused(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        file = drive.path / "file"
        file.touch()
        refused = []
        for attempt in (
            lambda: os.symlink("file", drive.path / "link"),
            lambda: os.link(file, drive.path / "link"),
            lambda: os.setxattr(file, "user.x", b"1"),
        ):
            with pytest.raises(OSError, match="not supported") as raised:
                attempt()
            refused.append(raised.value.errno)
        with file.open("r+") as stream:
            for lock in (fcntl.flock, fcntl.lockf):
                with pytest.raises(OSError, match="not supported") as raised:
                    lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                refused.append(raised.value.errno)
        assert refused == [errno.ENOTSUP] * 5
        assert os.listdir(drive.path) == ["file"]
