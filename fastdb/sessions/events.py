"""Events of a trainer, one JSON object per line.

| kind       | fields beside `time`                                                                  |
|------------|---------------------------------------------------------------------------------------|
| `plan`     | the fields of `training.prepare.Plan`; `lines` in versions before                     |
| `progress` | `task`, `done`, `total`: preparation (class images, latents)                          |
| `stage`    | `stage`, `step`, `steps`: a stage starts or resumes                                   |
| `step`     | `stage`, `step`, `steps`, `loss`, `prior_loss`, `learning_rate`, `seconds`, `batch`   |
| `sample`   | `stage`, `step`, `path`                                                               |
| `token`    | `prompts`, `shares`, `sheet`: what the untrained base drew for the instance and the class prompt |
| `saved`    | `stage`, `step`, `path`, `seconds`, `blocked`: on this machine; seconds training waited |
| `published`| `stage`, `step`, `path`, `bytes`, `seconds`: in the session's folder, read back         |
| `note`     | `kind`, `subject`, `reason`: a `fastdb.reporting.Note`                                |
| `warning`  | `message`; written by versions before notes                                           |
| `end`      | `outcome`: finished, stopped, failed or crashed; `message`; `traceback` when crashed; |
|            | `too_late` when another process was training the session already                      |
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastdb.errors import StorageError
from fastdb.storage.atomic_write import make_folder

_MOST_BYTES = 32 << 20
_MOST_WAITING = 4 << 20
"""Bytes of events that are kept in memory while the disk is full; older ones are dropped."""
_RESERVED = 16 << 10
"""Bytes reserved for the last event, in which a traceback has room."""

Event = dict[str, Any]
Emit = Callable[..., None]
"""`emit(event, **fields)`: how the rooms of training report; a note is `emit("note", **asdict(note))`."""


class EventLog:
    """Log that appends each event to a file as a whole line, and raises nothing: a log is no reason to end a training.

    What a full disk rejects is kept in memory and written as soon as there is space. If there is none until the end,
    the `end` event is written into a file beside the log, whose space was reserved at the start.
    """

    def __init__(self, path: Path) -> None:
        with suppress(OSError, StorageError):
            make_folder(path.parent)
        self.path = path
        self._turn = threading.Lock()
        self._waiting = bytearray()
        self._descriptor: int | None = None
        self._end = b""
        with suppress(OSError):
            _reserve(path).write_bytes(b" " * _RESERVED)
        with self._turn:
            self._write()

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Append an event; callable from any thread."""
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **fields}).encode() + b"\n"
        with self._turn:
            if kind == "end":
                self._end = line
            self._waiting += line
            self._write()

    def text(self) -> str:
        """Return the lines so far, including those that the disk rejects."""
        with self._turn:
            written = self.path.read_bytes() if self.path.exists() else b""
            return (written + self._waiting).decode("utf-8", "replace")

    def close(self) -> None:
        """Close the file."""
        with self._turn, suppress(OSError):
            self._write()
            if not self._waiting:
                _reserve(self.path).unlink(missing_ok=True)
            elif len(self._end) <= _RESERVED:
                # In place: this needs no space.
                with open(_reserve(self.path), "r+b", buffering=0) as file:
                    file.write(self._end)
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _write(self) -> None:
        """Append the waiting lines as far as the disk has space; the rest of a cut line comes first next time."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]
        except OSError:
            if len(self._waiting) > _MOST_WAITING:
                first = self._waiting.index(b"\n") + 1
                last = self._waiting.index(b"\n", len(self._waiting) - _MOST_WAITING // 2) + 1
                del self._waiting[first:last]


def _reserve(log: Path) -> Path:
    return log.with_suffix(".end")


def read_events(path: Path) -> list[Event]:
    """Return the events in a file so far; invalid and incomplete lines are skipped."""
    return [event for line in _lines_after(path, 0)[0] if (event := _parsed(line)) is not None]


def earlier_events(logs: Path) -> list[Event]:
    """Return the events of earlier runs in a session's `logs`, as far as they can be read within a moment."""
    events: list[Event] = []
    try:
        files = sorted(logs.glob("*.jsonl"))
        if sum(file.stat().st_size for file in files) <= _MOST_BYTES:
            for file in files:
                events += read_events(file)
    except OSError:
        # A disk that does not answer; the loss then begins with this run.
        return []
    return events


def follow_events(path: Path, alive: Callable[[], bool], interval: float = 0.1) -> Iterator[Event]:
    """Yield the events of a file from its start, and wait for more until `end` or until the writer is gone."""
    position, gone = 0, 0
    while True:
        # The last event may arrive just after the writer has released the lock by which it counts as alive.
        gone = 0 if alive() else gone + 1
        lines, position = _lines_after(path, position)
        for line in lines:
            event = _parsed(line)
            if event is not None:
                yield event
                if event["event"] == "end":
                    return
        if not lines:
            if gone > 2:
                if (event := _reserved_end(path)) is not None:
                    yield event
                return
            time.sleep(interval)


def _reserved_end(path: Path) -> Event | None:
    """Return the `end` event of a trainer whose log did not take it, because the disk was full."""
    try:
        return _parsed(_reserve(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def _lines_after(path: Path, position: int) -> tuple[list[str], int]:
    """Return the whole lines after a byte position, and the position after them."""
    if not path.exists():
        return [], position
    with open(path, "rb") as file:
        file.seek(position)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode("utf-8", "replace").split("\n")[:-1], position + whole


def _parsed(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
