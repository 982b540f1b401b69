"""Show what verbs and trainers report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdb.console.sentences import SENTENCES, sentence
from fastdb.console.terminal import bar, close_bar, open_bar, say
from fastdb.reporting import Note, Progress, Report, format_bytes


class ConsoleReport(Report):
    """Prints what a verb reports."""

    def __init__(self) -> None:
        self.view = TrainingView()

    def note(self, note: Note) -> None:
        """Print a note's sentence."""
        say(sentence(note))

    def event(self, event: dict[str, Any]) -> None:
        """Show an event of a trainer."""
        self.view.show(event)

    @contextmanager
    def progress(self, task: str, unit: str = "it") -> Iterator[Progress]:
        """Show a progress bar for one task."""
        with bar(task, unit) as update:
            yield update


class TrainingView:
    """Shows a trainer's events: the plan, a bar for each task and stage, a line for what was saved."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task = ""
        self._smooth: float | None = None

    def show(self, event: dict[str, Any]) -> None:
        """Show one event; a kind this version does not know is passed over."""
        kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "plan": self._plan,
            "progress": self._progress,
            "stage": self._stage,
            "step": self._step,
            "saved": self._saved,
            "published": self._published,
            "sample": self._sample,
            "note": self._note,
            "warning": self._warning,
            "end": self._end,
        }
        shower = kinds.get(event["event"])
        if shower is not None:
            shower(event)

    def close(self) -> None:
        """Finish the bar that is showing."""
        if self._bar is not None:
            close_bar(self._bar)
        self._bar, self._task = None, ""

    def _open(self, task: str, total: int, done: int = 0) -> Any:
        if self._task != task:
            self.close()
            self._bar = open_bar(desc=task, total=total, initial=done)
            self._task, self._smooth = task, None
        return self._bar

    def _plan(self, event: dict[str, Any]) -> None:
        for line in event["lines"]:
            say(line)

    def _progress(self, event: dict[str, Any]) -> None:
        shown = self._open(event["task"], event["total"])
        shown.update(event["done"] - shown.n)

    def _stage(self, event: dict[str, Any]) -> None:
        self._open(event["stage"], event["steps"], event["step"])

    def _step(self, event: dict[str, Any]) -> None:
        shown = self._open(event["stage"], event["steps"], event["step"] - 1)
        before = self._smooth
        # One step's loss mostly tells which timestep was drawn; the mean over about twenty tells more.
        self._smooth = event["loss"] if before is None else 0.95 * before + 0.05 * event["loss"]
        shown.set_postfix_str(f"loss {self._smooth:.4f}, rate {event['learning_rate']:.2e}", refresh=False)
        shown.update(event["step"] - shown.n)

    def _saved(self, event: dict[str, Any]) -> None:
        waited = f", training waited {event['blocked']:.1f} s" if event.get("blocked", 0) >= 0.1 else ""
        say(f"saved {Path(event['path']).name} on this machine in {event['seconds']:.1f} s{waited}")

    def _published(self, event: dict[str, Any]) -> None:
        name, taken = Path(event["path"]).name, event["seconds"]
        size = format_bytes(event["bytes"])
        say(f"published {name}: {size} in the session's folder in {taken:.1f} s, read back and hashed")

    def _sample(self, event: dict[str, Any]) -> None:
        say(f"sample {event['path']}")

    def _note(self, event: dict[str, Any]) -> None:
        note = Note(event["kind"], event.get("subject", ""), event.get("reason", ""))
        # A newer version may report kinds without a sentence here.
        text = sentence(note) if note.kind in SENTENCES else f"{note.kind}: {note.subject} {note.reason}".strip()
        say(f"warning: {text}")

    def _warning(self, event: dict[str, Any]) -> None:
        say(f"warning: {event['message']}")

    def _end(self, event: dict[str, Any]) -> None:
        self.close()
