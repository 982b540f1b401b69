"""The log of events on a disk that is full or gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.sessions import events
from fastdb.sessions.events import EventLog, follow_events, read_events


def fill(folder: Path) -> Path:
    """Fill a disk to its last byte."""
    path = folder / "fill"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return path


def test_what_a_full_disk_rejects_is_written_once_there_is_space(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    log = EventLog(folder / "run-1.jsonl")
    log.emit("step", step=0)
    full = fill(folder)
    for step in range(1, 300):
        log.emit("step", step=step)
    assert len(read_events(log.path)) < 200, "the disk is full"
    assert len(log.text().splitlines()) == 300
    full.unlink()
    log.emit("end", outcome="finished")
    log.close()
    said = read_events(log.path)
    assert [event.get("step") for event in said] == [*range(300), None]
    assert not log.path.with_suffix(".end").exists()


def test_the_end_reaches_the_reader_though_the_disk_stays_full(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    log = EventLog(folder / "run-1.jsonl")
    log.emit("plan", lines=[])
    fill(folder)
    ended = threading.Event()
    said: list[str] = []
    reader = threading.Thread(
        target=lambda: said.extend(event["event"] for event in follow_events(log.path, lambda: not ended.is_set()))
    )
    reader.start()
    for step in range(300):
        log.emit("step", step=step)
    log.emit("end", outcome="failed", message="the disk is full")
    log.close()
    ended.set()
    reader.join(30)
    assert (said[0], said[-1]) == ("plan", "end")
    (end,) = read_events(log.path.with_suffix(".end"))
    assert (end["outcome"], end["message"]) == ("failed", "the disk is full")


def test_a_killed_writer_leaves_no_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run-1.jsonl")
    log.emit("plan", lines=[])
    assert [event["event"] for event in follow_events(log.path, lambda: False)] == ["plan"]


def test_the_memory_for_rejected_events_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are dropped, in whole lines, except the rest of the line that the disk took in part."""
    monkeypatch.setattr(events, "_MOST_WAITING", 2000)
    log = EventLog(tmp_path / "run-1.jsonl")
    write, free = os.write, 10

    def full(descriptor: int, data: bytes) -> int:
        nonlocal free
        if free == 0:
            raise OSError(28, "No space left on device")
        count = min(free, len(data))
        free -= count
        return write(descriptor, bytes(data[:count]))

    monkeypatch.setattr(events.os, "write", full)
    for step in range(1000):
        log.emit("step", step=step)
    assert len(log.text()) < 3000
    free = 1 << 20
    log.emit("end", outcome="finished")
    log.close()
    steps = [event.get("step") for event in read_events(log.path)]
    assert steps[0] == 0
    assert steps[1:] == [*range(1000 - len(steps) + 2, 1000), None]


def test_a_log_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    (tmp_path / "work").write_bytes(b"")
    log = EventLog(tmp_path / "work" / "run-1.jsonl")
    log.emit("step", step=1)
    (tmp_path / "work").unlink()
    (tmp_path / "work").mkdir()
    log.emit("step", step=2)
    log.close()
    assert [event["step"] for event in read_events(log.path)] == [1, 2]
