"""Publishing of checkpoints, its pace, its retries and its check of the owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from filelock import FileLock

from fastdb.checkpoints.checkpoint import Checkpoint, complete, save
from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.publish import LOCK, Publishing, _Pace, nothing_published, pending, prune_local
from fastdb.checkpoints.publisher_process import _reset_priority
from fastdb.errors import SessionBusy, StorageError
from fastdb.formats.safetensors_file import save_tensors
from fastdb.reporting import Note
from fastdb.runtime.paths import work_folder
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.manifest import faults
from tests.faultfs.mount import Mount
from tests.faultfs.upload import Late


@pytest.fixture
def session() -> Session:
    return Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))


def saved(session: Session, step: int, steps: int = 1500, count: int = 20_000) -> Checkpoint:
    """A checkpoint of the UNet's stage on this machine, with `count` random numbers for weights."""
    numbers = torch.Generator().manual_seed(step)

    def write(hidden: Path) -> dict[str, str]:
        return {
            f"{name}.safetensors": save_tensors(
                hidden / f"{name}.safetensors", {"a": torch.randn(count, generator=numbers)}
            )
            for name in ("unet", "optimizer")
        }

    state = {"format": 2, "lineage": session.record.lineage, "stage": "unet", "step": step, "steps": steps}
    session.local_checkpoints.parent.mkdir(parents=True, exist_ok=True)
    return save(session.local_checkpoints, "unet", step, state, write)[0]


class Told(list[tuple[str, dict[str, Any]]]):
    """The emitted events."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.append((event, fields))

    @property
    def notes(self) -> list[Note]:
        return [Note(**fields) for event, fields in self if event == "note"]


def publishing_lock(session: Session) -> FileLock:
    folder = work_folder(session.path)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCK)


def publish(session: Session, mini: Path, **more: Any) -> Told:
    told = Told()
    Publishing(session, mini, told, **more).run(lambda: True)
    return told


def equal(local: Checkpoint, published: Path, mini: Path) -> bool:
    """Whether what was published comes back as it was saved."""
    return all(
        raw_files({name: published / f"{name}.packed"}, mini)[name].read_bytes()
        == (local.path / f"{name}.safetensors").read_bytes()
        for name in ("unet", "optimizer")
    )


def test_what_is_published_is_packed_and_comes_back_to_the_byte(session: Session, mini: Path) -> None:
    local = saved(session, 5)
    told = publish(session, mini)
    (published,) = complete(session.checkpoints)
    assert sorted(path.name for path in published.path.iterdir()) == [
        "MANIFEST.json",
        "optimizer.packed",
        "state.json",
        "unet.packed",
    ]
    assert faults(published.path) == []
    assert equal(local, published.path, mini)
    kind, fields = told[-1]
    assert (kind, fields["step"], fields["path"]) == ("published", 5, str(published.path))
    progress = [fields for kind, fields in told if kind == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]
    assert pending(session) == []
    assert publish(session, mini) == [], "there is nothing left to do"


def test_the_one_on_this_machine_is_gone_on_from_and_the_published_one_where_it_is_damaged(
    session: Session, mini: Path
) -> None:
    local = saved(session, 5, steps=5)
    publish(session, mini)
    session = session.with_config(session.config.changed({"text_encoder.steps": 0}))
    assert standing(session).checkpoints["unet"].path == local.path
    (local.path / "unet.safetensors").write_bytes(b"rotten")
    stands = standing(session)
    assert stands.checkpoints["unet"].path == session.checkpoints / "unet-000005"
    [note] = stands.skipped
    assert note.subject == "unet-000005"
    assert note.reason.startswith("unet.safetensors has 6 bytes")


def test_a_damaged_one_on_this_machine_is_never_published(session: Session, mini: Path) -> None:
    local = saved(session, 5)
    data = bytearray((local.path / "unet.safetensors").read_bytes())
    data[-1] ^= 1
    (local.path / "unet.safetensors").write_bytes(data)
    told = publish(session, mini)
    assert complete(session.checkpoints) == []
    reason = "unet.safetensors has changed since it was written"
    assert told.notes == [Note("checkpoint skipped", "unet-000005 on this machine", reason)]
    assert (session.local_checkpoints / "set-aside-1" / "unet-000005").is_dir(), "it is kept"


def test_a_published_one_that_rots_is_set_aside_and_published_anew(session: Session, mini: Path) -> None:
    local = saved(session, 5)
    publish(session, mini)
    (session.checkpoints / "unet-000005" / "state.json").write_text("{}")
    told = publish(session, mini)
    assert equal(local, session.checkpoints / "unet-000005", mini)
    reason = "a new checkpoint of the same step replaced it"
    assert told.notes == [Note("checkpoint set aside", "set-aside-1/unet-000005", reason)]


def test_one_whose_weights_rot_is_found_at_the_end_of_a_run(session: Session, mini: Path) -> None:
    """Its state says still what it was made of; only reading every byte tells."""
    local = saved(session, 5)
    publish(session, mini)
    weights = session.checkpoints / "unet-000005" / "unet.packed"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert pending(session) == []
    told = publish(session, mini, known={weights.parent})
    assert told == [], "this run has written and read it already"
    told = publish(session, mini)
    reason = "unet.packed has changed since it was written"
    assert told.notes == [Note("checkpoint set aside", "set-aside-1/unet-000005", reason)]
    assert equal(local, weights.parent, mini)
    assert faults(weights.parent) == []


def test_compression_keeps_to_the_requested_rate(session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = session.with_config(session.config.changed({"checkpoints.publish_mb_per_second": 0.2}))
    saved(slow, 5)
    began = time.monotonic()
    publish(slow, mini)
    taken, written = time.monotonic() - began, sum(path.stat().st_size for path in slow.checkpoints.rglob("*.packed"))
    assert taken >= written / 0.2e6 - 0.05
    clock = [0.0]
    monkeypatch.setattr("fastdb.checkpoints.publish.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("fastdb.checkpoints.publish.time.sleep", lambda seconds: clock.append(clock.pop() + seconds))
    pace = _Pace(1e6)
    for _ in range(10):
        pace(20_000)
    assert clock == [pytest.approx(0.2)]


def test_only_one_process_publishes_at_a_time(session: Session, mini: Path) -> None:
    saved(session, 5)
    with publishing_lock(session):
        thread = threading.Thread(target=publish, args=(session, mini))
        thread.start()
        time.sleep(0.5)
        assert complete(session.checkpoints) == []
    thread.join()
    assert len(complete(session.checkpoints)) == 1


def test_what_is_being_published_is_not_set_aside_underneath(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdb.checkpoints.publish.BUSY_WITHIN", 0.1)
    with (
        publishing_lock(session),
        pytest.raises(SessionBusy, match="being published"),
        nothing_published(session),
    ):
        raise AssertionError("it was let in")


def test_a_session_that_was_taken_over_gets_nothing(session: Session, mini: Path) -> None:
    saved(session, 5)

    def refused() -> None:
        raise SessionBusy("was taken over by b at 12:00", subject="cup", fix="Follow it there.")

    with pytest.raises(SessionBusy, match="taken over"):
        publish(session, mini, check_owner=refused)
    assert list(session.checkpoints.glob("*-0*")) == []
    publish(session, mini)
    with pytest.raises(SessionBusy, match="taken over"):
        publish(session, mini, check_owner=refused)


def test_a_folder_that_is_gone_is_not_made_again(session: Session, mini: Path, tmp_path: Path) -> None:
    saved(session, 5)
    session.path.rename(tmp_path / "away")
    with pytest.raises(StorageError, match="folder is gone"):
        publish(session, mini, patience=0)
    assert not session.path.exists()


ERRORS = [(error, persistent) for error in ("EIO", "ENOSPC", "ENOTCONN") for persistent in (False, True)]


def attempt(drive: Mount, session: Session, mini: Path, nth: int, error: str, persistent: bool) -> bool:
    """Publish with an error at the `nth` operation; whether there was one."""
    case = (nth, error, persistent)
    drive.reset()
    drive.fail("any", nth, error, persistent=persistent)
    told = Told()
    healer = threading.Timer(0.7, drive.heal)
    healer.start()
    Publishing(session, mini, told, patience=60).run(lambda: True)
    struck = any(error for _, _, error in drive.log())
    healer.cancel()
    drive.heal()
    # At most a note about the failure and a note about an older checkpoint that was kept.
    assert len(set(told.notes)) == len(told.notes) <= 2, (case, told.notes)
    assert all("\n" not in note.reason for note in told.notes), case
    found = [one.step for one in complete(session.checkpoints)]
    assert found[-1] == 3, case
    assert all(faults(one.path) == [] for one in complete(session.checkpoints)), case
    assert pending(session) == [], case
    return struck


def at_operations(tmp_path: Path, mini: Path, every: int) -> int:
    """An error at each `every`-th operation of publishing a third checkpoint beside two, the kinds of errors in turn;
    how many there were.
    """
    cases = 0
    with Mount(tmp_path) as drive:
        session = Session.create(
            "cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"), root=drive.path / "Sessions"
        )
        for step in (1, 2):
            saved(session, step, count=200)
            publish(session, mini)
        good = tmp_path / "good"
        shutil.copytree(drive.disk, good)
        saved(session, 3, count=200)
        drive.reset()
        publish(session, mini)
        for nth in range(1, sum(drive.counts().values()) + 1, every):
            shutil.rmtree(drive.disk / "Sessions")
            shutil.copytree(good, drive.disk, dirs_exist_ok=True)
            error, persistent = ERRORS[nth // every % len(ERRORS)]
            assert attempt(drive, session, mini, nth, error, persistent)
            cases += 1
    return cases


@pytest.mark.full
def test_an_error_at_every_operation_is_a_line_and_then_it_is_published(tmp_path: Path, mini: Path) -> None:
    assert at_operations(tmp_path, mini, every=1) > 1000


def test_an_error_at_some_operations_is_a_line_and_then_it_is_published(tmp_path: Path, mini: Path) -> None:
    assert at_operations(tmp_path, mini, every=101) > 10


def test_the_next_waits_until_the_one_before_is_uploaded(tmp_path: Path, mini: Path) -> None:
    with Mount(tmp_path, Late(seed=1, delay=10_000)) as drive:
        session = Session.create(
            "cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"), root=drive.path / "Sessions"
        )
        saved(session, 1)
        ending = threading.Event()
        told = Told()
        thread = threading.Thread(target=Publishing(session, mini, told).run, args=(ending.is_set,))
        thread.start()
        try:
            while not any(kind == "published" for kind, _ in told):
                time.sleep(0.05)
            saved(session, 2)
            time.sleep(2.5)
            assert [one.step for one in complete(session.checkpoints)] == [1], "Drive has not taken it yet"
            drive.settle()
            deadline = time.monotonic() + 60
            while len(complete(session.checkpoints)) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert [one.step for one in complete(session.checkpoints)] == [1, 2]
        finally:
            ending.set()
            thread.join()


def test_who_is_waited_for_is_not_nice_any_more() -> None:
    """Every thread of it, where this user may; where not, it just takes longer."""
    code = (
        "import os, threading, time; os.nice(12)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('nice', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "nice\n"
            threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
            lowered = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 12)
            assert [os.getpriority(os.PRIO_PROCESS, one) for one in threads] == [lowered, lowered]
            may_raise = subprocess.run(["nice", "-n", "-1", "true"], capture_output=True, check=False).stderr == b""
            _reset_priority(process.pid)
            expected = 0 if may_raise else lowered
            assert [os.getpriority(os.PRIO_PROCESS, one) for one in threads] == [expected, expected]
        finally:
            process.kill()
    _reset_priority(process.pid)


def test_the_newest_that_a_setting_keeps_are_published_after_the_newest_and_stay_here_until_then(
    session: Session, mini: Path
) -> None:
    session = session.with_config(session.config.changed({"checkpoints.keep_last": 3}))
    for step in (1, 2, 3, 4):
        saved(session, step)
    assert [one.path.name for one in pending(session)] == ["unet-000002", "unet-000003", "unet-000004"]
    assert [one.path.name for one in pending(session, needed=True)] == ["unet-000004"]
    prune_local(session, keep=1)
    assert [one.step for one in complete(session.local_checkpoints)] == [2, 3, 4]
    told = publish(session, mini)
    assert [fields["step"] for kind, fields in told if kind == "published"] == [4, 3, 2], "the newest first"
    assert [one.step for one in complete(session.checkpoints)] == [2, 3, 4]
    assert pending(session) == []
    saved(session, 5)
    publish(session, mini)
    assert [one.step for one in complete(session.checkpoints)] == [3, 4, 5]
    # Where space on this machine is short, only those that are needed stay.
    for step in (6, 7):
        saved(session, step)
    prune_local(session, keep=1, needed=True)
    assert [one.step for one in complete(session.local_checkpoints)] == [7]
