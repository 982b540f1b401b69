"""Waits for publishing that hangs: they are reported, can be left, and end with the command that publishes later."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints import publishing_watch
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.publish import HOLDER, Publishing
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.checkpoints.publishing_watch import Stalled, await_publishing, bytes_moved, in_time, publish_rest
from fastdb.console.sentences import sentence
from fastdb.errors import StorageError
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from tests.checkpoints.test_publish import Told, publishing_lock, saved
from tests.faultfs.mount import Mount


@pytest.fixture
def session() -> Session:
    return Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def hung(session: Session, mini: Path) -> Publisher:
    """A publisher whose process is stopped in the middle of a checkpoint, as on a mount that hangs."""
    session = session.with_config(session.config.changed({"checkpoints.publish_mb_per_second": 0.01}))
    saved(session, 7)
    publisher = Publisher(session, mini, Told())
    publisher.wake()
    wait_until(lambda: (session.checkpoints / ".unfinished-unet-000007").is_dir())
    os.kill(publisher._process.pid, signal.SIGSTOP)
    yield publisher
    with suppress(ProcessLookupError):
        os.kill(publisher._process.pid, signal.SIGKILL)


def test_a_hung_publisher_is_reported_and_given_up_with_the_command_that_publishes_later(
    session: Session, mini: Path, hung: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FIRST_REPORT": 0.2, "REPORT_EVERY": 0.3, "STALLED_AFTER": 1.0}.items():
        monkeypatch.setattr(publishing_watch, name, value)
    with pytest.raises(StorageError, match="nothing was read or written for 1 seconds") as ended:
        hung.finish(lambda: False)
    assert "unet-000007 could not be published, so it exists on this machine only" in str(ended.value)
    assert str(ended.value).endswith("fastdb publish cup")
    notes = [note for note in hung.emit.notes if note.kind == "publishing awaited"]
    assert len(notes) >= 2, "it goes on reporting"
    assert sentence(notes[-1]).startswith("Waiting until unet-000007 is in the session's folder: nothing was read")
    assert hung._process.wait(10) == -signal.SIGKILL, "the lock is free again"
    publish_rest(Publishing(session, mini, Told()), session.work)
    assert [one.step for one in complete(session.checkpoints)] == [7]


def test_leaving_a_hung_publisher_returns_at_once(hung: Publisher) -> None:
    first = hung._process
    began = time.monotonic()
    hung.finish(lambda: time.monotonic() - began > 0.3)
    assert time.monotonic() - began < 5.0
    assert hung._process is not first, "the rest is left to a process of its own"
    hung._process.terminate()
    hung._process.wait(20)


def test_the_end_waits_for_another_publisher_only_as_long_as_that_advances(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing_watch, "STALLED_AFTER", 1.0)
    session = session.with_config(session.config.changed({"checkpoints.patience_minutes": 0}))
    monkeypatch.setattr(publishing_watch, "FIRST_REPORT", 0.2)
    saved(session, 7)
    with publishing_lock(session):
        (session.work / HOLDER).write_text("1")
        with pytest.raises(Stalled):
            publish_rest(Publishing(session, mini, Told()), session.work)


def test_what_advances_slowly_is_not_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(publishing_watch, "LEAST", 1000)
    began, told = time.monotonic(), list[float]()

    def write() -> None:
        with open(tmp_path / "file", "wb", buffering=0) as file:
            while time.monotonic() - began < 2.0:
                file.write(b"x" * 500)
                time.sleep(0.05)

    thread = threading.Thread(target=write)
    thread.start()
    assert await_publishing(lambda: not thread.is_alive(), lambda: False, lambda: {os.getpid()}, told.append, limit=0.7)


def test_processes_that_are_gone_or_unknown_never_count_as_hung() -> None:
    assert bytes_moved({os.getpid()}) > 0
    assert bytes_moved({2**22 + 1}) is None
    assert bytes_moved(()) is None


def test_a_call_that_hangs_is_given_up_and_others_keep_their_result_and_error() -> None:
    assert in_time(lambda: 3, 5) == 3
    with pytest.raises(KeyError):
        in_time(lambda: {}["x"], 5)
    with pytest.raises(StorageError, match="the disk has not answered for 0 seconds"):
        in_time(lambda: time.sleep(1), 0.05)


def test_a_disk_that_hangs_ends_the_wait(tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is stopped, so that no call to the drive returns, not even after SIGTERM."""
    for name, value in {"FIRST_REPORT": 0.2, "STALLED_AFTER": 1.0, "_LISTED_WITHIN": 0.2}.items():
        monkeypatch.setattr(publishing_watch, name, value)
    with Mount(tmp_path) as drive:
        monkeypatch.setenv("FASTDB_ROOT", str(drive.path))
        session = Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))
        session = session.with_config(session.config.changed({"checkpoints.patience_minutes": 0}))
        saved(session, 7)
        publisher = Publisher(session, mini, Told())
        os.kill(drive.server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StorageError, match="unet-000007 could not be published") as ended:
                publisher.finish(lambda: False)
            assert "fastdb publish cup" in str(ended.value)
        finally:
            os.kill(drive.server.pid, signal.SIGCONT)
