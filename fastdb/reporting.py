"""Notes and progress that functions report to their caller, which decides how to show them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int, int], None]
"""Called with what is done and the total, in one unit; a total of 0 is unknown."""


@dataclass(frozen=True)
class Note:
    """A finding that is no error. `console.SENTENCES` has the sentence of each kind."""

    kind: str
    """Fixed words that name the finding, such as `checkpoint skipped`."""
    subject: str = ""
    """The file, setting or value concerned."""
    reason: str = ""
    """Details that complete the sentence."""


class Report:
    """Receives what a verb reports; this one discards everything."""

    def note(self, note: Note) -> None:
        """Receive a finding."""

    def event(self, event: dict[str, Any]) -> None:
        """Receive an event of a trainer; see `fastdb.sessions.events`."""

    def earlier(self, events: Iterable[dict[str, Any]]) -> None:
        """Receive the events of earlier runs of a training that is resumed or followed."""

    @contextmanager
    def progress(self, task: str, unit: str = "it") -> Iterator[Progress]:
        """Yield the callback for the progress of one task; the unit `B` is bytes."""
        yield lambda done, total: None


SILENT = Report()


def format_bytes(count: int) -> str:
    """Format a number of bytes: `3.4 GB` (10^9), `217 MB` (10^6)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count} bytes"


def argument(name: object) -> str:
    """Return a name as an argument of a command line, quoted if a shell would split it."""
    return shlex.quote(str(name))


def counted(count: int, noun: str) -> str:
    """Format a number of things: `1 file`, `3 files`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
