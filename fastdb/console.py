"""The only room that prints: lines, tables, progress bars, and the one line an error becomes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdb.errors import FastDBError
from fastdb.reporting import Note, Progress, Report, format_bytes

_BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What breaks a line, moves a terminal's cursor or turns the direction of writing; a file's name may hold it."""

_showing: list[Any] = []
"""The bars that are showing, the innermost last."""


def say(line: str = "") -> None:
    """Print one line, above a progress bar if one is showing."""
    # A file name may hold what this terminal has no sign for; that is no reason to fail.
    line = _BREAKS.sub(lambda sign: ascii(sign[0])[1:-1], line)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    if _showing:
        _showing[-1].write(line)
    else:
        print(line, flush=True)


def complain(line: str) -> None:
    """Print one line to standard error; what would break it into several becomes a space."""
    print(" ".join(line.splitlines()), file=sys.stderr, flush=True)


@contextmanager
def boundary() -> Iterator[None]:
    """Turn a fault a person can mend into one line and exit code 2; a bug keeps its traceback."""
    try:
        yield
    except FastDBError as error:
        complain(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        complain("stopped by you")
        raise SystemExit(130) from None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a head, columns aligned; nothing is cut, so that it can be copied and piped."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def bar(task: str, unit: str = "it") -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rate and ETA; call what it gives with (done, total), total 0 where nobody knows.

    Of the unit `B`, bytes, it shows thousands as k, M and G.
    """
    shown: list[Any] = []

    def update(done: int, total: int) -> None:
        # Opened only now that the total is known: a widget keeps the total it began with.
        if not shown:
            shown.append(_tqdm(desc=task, unit=unit, total=total or None, unit_scale=unit == "B"))
        shown[0].update(done - shown[0].n)

    try:
        yield update
    finally:
        for one in shown:
            _finish(one)


def _tqdm(**options: Any) -> Any:
    """A bar of tqdm: a widget in a notebook, a line that moves in a terminal, a line now and then in a log file."""
    from tqdm.auto import tqdm

    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = tqdm(dynamic_ncols=True, mininterval=0.1 if live else 10, **options)
    # Only a bar that is whole: an interruption while a widget was being made left one that cannot be drawn.
    _showing.append(shown)
    return shown


def _finish(shown: Any) -> None:
    if shown in _showing:
        _showing.remove(shown)
    shown.close()


SENTENCES: dict[str, str] = {
    # checkpoints
    "checkpoint not removed": "Could not remove checkpoint {subject}: {reason}",
    "checkpoint set aside": "Moved a checkpoint to {subject}: {reason}",
    "checkpoint skipped": "Skipping checkpoint {subject}: {reason}",
    "file skipped": "Skipping {subject}: {reason}",
    "older checkpoints unread": "Could not read the older checkpoints: {reason}",
    "publisher crashed": "The publisher ended with exit code {subject}; its output is in {reason}",
    "publishing delayed": "Not in the session's folder yet: {reason}",
    "publishing ended": "Publishing ended early: {reason}",
    "upload slow": "Google Drive has not uploaded {subject} after {reason}",
    "uploads pending": "{subject} checkpoints are waiting for upload to Google Drive; older ones are kept until then",
}
"""The sentence of each kind of `Note`, with {subject} and {reason}; sorted by room."""


def sentence(note: Note) -> str:
    """Return the sentence of a note."""
    return SENTENCES[note.kind].format(subject=note.subject, reason=note.reason)


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
            _finish(self._bar)
        self._bar, self._task = None, ""

    def _open(self, task: str, total: int, done: int = 0) -> Any:
        if self._task != task:
            self.close()
            self._bar = _tqdm(desc=task, total=total, initial=done)
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
