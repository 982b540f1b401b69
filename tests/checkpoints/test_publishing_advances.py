"""Publishing that is slower than saving, and errors that must not stop it."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints import publish as publishing
from fastdb.checkpoints.checkpoint import Checkpoint, complete
from fastdb.checkpoints.publish import Publishing, pending, prune_local
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.errors import ModelError, StorageError
from fastdb.runtime.paths import work_folder
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.delete import bytes_of
from tests.checkpoints.test_publish import Told, saved


@pytest.fixture
def session() -> Session:
    return Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))


class Timed(Told):
    """The emitted events, with the time of each."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.times.append(time.monotonic())
        super().__call__(event, **fields)

    def published(self) -> list[tuple[float, int]]:
        return [
            (at, fields["step"]) for at, (kind, fields) in zip(self.times, self, strict=True) if kind == "published"
        ]


def outrun(session: Session, mini: Path, saves: int, every: float = 0.12, slower: int = 10, **settings: Any) -> Timed:
    """Save every so often beside a real publisher that takes `slower` times as long; the events of the publisher.

    Asserts that each publication is of the checkpoint that was the newest when the one before had ended, so that the
    newest published one is at no time older than two publications.
    """
    size = bytes_of(saved(session, 1, steps=10**6).path)
    rate = size / (every * slower) / 1e6
    session = session.with_config(session.config.changed({"checkpoints.publish_mb_per_second": rate, **settings}))
    told = Timed()
    publisher = Publisher(session, mini, told)
    publisher.wake()
    first = publisher._process
    made = [(time.monotonic(), 1)]
    for step in range(2, saves + 1):
        began = time.monotonic()
        saved(session, step, steps=10**6)
        made.append((time.monotonic(), step))
        assert prune_local(session) == []
        publisher.wake()
        time.sleep(max(0.0, began + every - time.monotonic()))
    assert publisher._process is first, "the publisher ended early"
    before = 0.0
    first.terminate()
    publisher._relay.join()
    assert first.wait() == 0
    ends = told.published()
    assert told.notes == []
    assert len(ends) >= saves / slower / 3, "it advances, at a third of its speed at least while others work here"
    for at, step in ends:
        # The relay reads the log every tenth of a second.
        newest = max((step for saved_at, step in made if saved_at <= before - 0.3), default=1)
        assert step >= newest
        before = at
    return told


def test_a_publisher_ten_times_too_slow_always_advances(session: Session, mini: Path) -> None:
    outrun(session, mini, saves=50)
    assert len(complete(session.local_checkpoints)) <= 3, "the two newest, and the one that is published"


@pytest.mark.full
def test_200_saves_under_a_publisher_ten_times_too_slow(session: Session, mini: Path) -> None:
    assert len(outrun(session, mini, saves=200).published()) >= 10
    assert len(list(work_folder(session.path).glob("publish-*.jsonl"))) == 1


def test_more_to_keep_than_can_be_published_does_not_hold_up_the_newest(session: Session, mini: Path) -> None:
    """By turns the newest and the oldest that is kept."""
    session = session.with_config(session.config.changed({"checkpoints.keep_every": 1}))
    for step in range(1, 5):
        saved(session, step)
    told, step = Told(), 4

    def more() -> bool:
        nonlocal step
        published = sum(kind == "published" for kind, _ in told)
        while step < 4 + 2 * published:
            step += 1
            saved(session, step)
        return published >= 5

    Publishing(session, mini, told).run(lambda: False, more)
    assert [fields["step"] for kind, fields in told if kind == "published"] == [4, 1, 8, 2, 12]


def test_a_source_that_vanishes_while_it_is_read_gives_way_to_the_newest(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a person deletes it, or training saves the same step again."""
    from fastdb.checkpoints import compressed_checkpoint

    saved(session, 1)
    honest = compressed_checkpoint.open_tensors

    def vanishing(path: Path) -> Any:
        if path.parent.name == "unet-000001" and path.name == "optimizer.safetensors":
            shutil.rmtree(path.parent)
            saved(session, 2)
        return honest(path)

    monkeypatch.setattr(compressed_checkpoint, "open_tensors", vanishing)
    told = Told()
    Publishing(session, mini, told).run(lambda: True)
    assert told.notes == []
    assert [one.step for one in complete(session.checkpoints)] == [2]


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no base model", where="mini"),
        RuntimeError("a bug"),
        MemoryError(),
        StorageError("full", where="disk"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_that_fails_is_told_once_and_the_next_are_published(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(publishing, "BACK_OFF", (0.05,))
    session = session.with_config(session.config.changed({"checkpoints.keep_every": 1}))
    for step in (1, 2, 3):
        saved(session, step)
    honest, told = publishing.save_checkpoint, Told()

    def failing(folder: Path, stage: str, step: int, *rest: Any) -> Any:
        if step == 3:
            raise error
        return honest(folder, stage, step, *rest)

    monkeypatch.setattr(publishing, "save_checkpoint", failing)
    deadline = time.monotonic() + 1.0
    Publishing(session, mini, told).run(lambda: False, lambda: time.monotonic() > deadline)
    assert [one.step for one in complete(session.checkpoints)] == [1, 2]
    assert [note.kind for note in told.notes] == ["publishing delayed"]
    assert names(pending(session)) == ["unet-000003"]
    monkeypatch.setattr(publishing, "save_checkpoint", honest)
    Publishing(session, mini, told).run(lambda: True)
    assert pending(session) == []


def test_a_fault_at_the_end_names_the_checkpoints_and_the_same_command_publishes_them(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publishing, "BACK_OFF", (0.05,))
    base = shutil.copytree(mini, tmp_path / "base")
    shutil.rmtree(base / "unet")
    saved(session, 7)
    with pytest.raises(
        StorageError, match="unet-000007 could not be published, so it exists on this machine only"
    ) as ended:
        Publisher(session, base, Told()).finish(lambda: False)
    assert "Restore the base model" in str(ended.value)
    shutil.copytree(mini / "unet", base / "unet")
    Publisher(session, base, Told()).finish(lambda: False)
    assert names(complete(session.checkpoints)) == ["unet-000007"]


def test_a_publisher_that_cannot_be_started_is_a_note(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("fastdb.checkpoints.publisher_process.subprocess.Popen", failing)
    told = Told()
    Publisher(session, mini, told).wake()
    assert [note.kind for note in told.notes] == ["publishing delayed"]


def test_publishers_that_die_again_and_again_are_told_once(
    session: Session, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    told = Told()
    publisher = Publisher(session, mini, told)
    for _ in range(3):
        publisher.wake()
        publisher._relay.join()
    assert [(note.kind, note.subject) for note in told.notes] == [("publisher crashed", "1")]


def names(checkpoints: list[Checkpoint]) -> list[str]:
    return [checkpoint.path.name for checkpoint in checkpoints]
