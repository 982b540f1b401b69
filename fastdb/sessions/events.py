"""Events of a trainer, one JSON object per line.

| kind       | fields beside `time`                                                                  |
|------------|---------------------------------------------------------------------------------------|
| `plan`     | the fields of `training.prepare.Plan`; `lines` in versions before                     |
| `progress` | `task`, `done`, `total`: preparation (class images, latents)                          |
| `stage`    | `stage`, `step`, `steps`: a stage starts or resumes                                   |
| `step`     | `stage`, `step`, `steps`, `loss`, `prior_loss`, `learning_rate`, `seconds`, `batch`   |
| `sample`   | `stage`, `step`, `path`                                                               |
| `saved`    | `stage`, `step`, `path`, `seconds`, `blocked`: on this machine; seconds training waited |
| `published`| `stage`, `step`, `path`, `bytes`, `seconds`: in the session's folder, read back         |
| `note`     | `kind`, `subject`, `reason`: a `fastdb.reporting.Note`                                |
| `warning`  | `message`; written by versions before notes                                           |
| `end`      | `outcome`: finished, stopped, failed or crashed; `message`; `traceback` when crashed; |
|            | `too_late` when another process was training the session already                      |
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from fastdb.storage.atomic_write import make_folder

_MOST_BYTES = 32 << 20

Event = dict[str, Any]
Emit = Callable[..., None]
"""`emit(event, **fields)`: how the rooms of training report; a note is `emit("note", **asdict(note))`."""


class EventLog:
    """Log that appends each event to a file as a whole line."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path = path
        self._turn = threading.Lock()
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Append an event; callable from any thread."""
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **fields})
        with self._turn:
            self._file.write(line + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
                return
            time.sleep(interval)


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
