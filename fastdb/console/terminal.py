"""Print lines, tables, progress bars and errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastdb.errors import FastDBError

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
            shown.append(open_bar(desc=task, unit=unit, total=total or None, unit_scale=unit == "B"))
        shown[0].update(done - shown[0].n)

    try:
        yield update
    finally:
        for one in shown:
            close_bar(one)


def open_bar(**options: Any) -> Any:
    """A bar of tqdm: a widget in a notebook, a line that moves in a terminal, a line now and then in a log file."""
    from tqdm.auto import tqdm

    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = tqdm(dynamic_ncols=True, mininterval=0.1 if live else 10, **options)
    # Only a bar that is whole: an interruption while a widget was being made left one that cannot be drawn.
    _showing.append(shown)
    return shown


def close_bar(shown: Any) -> None:
    """Close a progress bar."""
    if shown in _showing:
        _showing.remove(shown)
    shown.close()
