"""Print lines, tables, progress bars and errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastdb.errors import FastDBError

_BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters, possible in file names, that break a line, move the cursor or change the direction of writing."""

_showing: list[Any] = []
"""The open bars, the innermost last."""


def say(line: str = "") -> None:
    """Print one line, above a progress bar if one is showing."""
    # A file name may contain characters that this terminal cannot encode.
    line = _BREAKS.sub(lambda match: ascii(match[0])[1:-1], line)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    if _showing:
        _showing[-1].write(line)
    else:
        print(line, flush=True)


def complain(line: str) -> None:
    """Print one line to standard error, with line breaks replaced by spaces."""
    print(" ".join(line.splitlines()), file=sys.stderr, flush=True)


@contextmanager
def boundary() -> Iterator[None]:
    """Turn a `FastDBError` into one line and exit code 2; other exceptions keep their traceback."""
    try:
        yield
    except FastDBError as error:
        complain(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise SystemExit(130) from None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below a head with aligned columns; nothing is cut, so that output can be copied and piped."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def bar(task: str, unit: str = "it") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with rate and ETA; yield its callback for (done, total), a total of 0 being unknown.

    With the unit `B`, bytes, numbers are shown in k, M and G.
    """
    bars: list[Any] = []

    def update(done: int, total: int) -> None:
        # Opened once the total is known: a widget keeps its first total.
        if not bars:
            bars.append(open_bar(desc=task, unit=unit, total=total or None, unit_scale=unit == "B"))
        bars[0].update(done - bars[0].n)

    try:
        yield update
    finally:
        for opened in bars:
            close_bar(opened)


def open_bar(**options: Any) -> Any:
    """Open a tqdm bar, a widget in a notebook and a line in a terminal or log file."""
    from tqdm.auto import tqdm

    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    opened = tqdm(dynamic_ncols=True, mininterval=0.1 if live else 10, **options)
    # Registered only now: an interruption while a widget was created left a bar that cannot be drawn.
    _showing.append(opened)
    return opened


def close_bar(opened: Any) -> None:
    """Close a progress bar."""
    if opened in _showing:
        _showing.remove(opened)
    opened.close()
