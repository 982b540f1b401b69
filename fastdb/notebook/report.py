"""What a verb reports, in a notebook: lines in its words, and progress as lines, not as bars.

Bars of tqdm freeze a browser that reconnects, and show nothing after a reload.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastdb import console
from fastdb.notebook.wording import use_wording
from fastdb.reporting import Progress, format_bytes

FIRST, NEXT = 2.0, 15.0
"""Seconds after which progress is shown for the first time, and again."""


class NotebookReport(console.ConsoleReport):
    """Prints what a verb reports in a notebook."""

    def __init__(self) -> None:
        use_wording()
        super().__init__()

    @contextmanager
    def progress(self, task: str, unit: str = "it") -> Iterator[Progress]:
        """Print the progress of one task as a line from time to time."""
        began = time.monotonic()
        shown = began + FIRST

        def update(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now >= shown and done:
                shown = now + NEXT
                console.say(_line(task, unit, done, total, now - began))

        yield update


def _line(task: str, unit: str, done: int, total: int, seconds: float) -> str:
    amount = [format_bytes(each) if unit == "B" else str(each) for each in (done, total)]
    if not total:
        return f"{task}: {amount[0]}"
    left = seconds * max(total - done, 0) / done
    rest = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{task}: {amount[0]} of {amount[1]}{'' if unit == 'B' else f' {unit}s'}, about {rest} left"
