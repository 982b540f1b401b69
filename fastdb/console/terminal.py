"""Print lines, tables, progress bars and errors."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastdb.console.streams import forgiving_streams
from fastdb.errors import MORE_MEMORY, FastDBError, is_out_of_memory, out_of_memory
from fastdb.reporting import format_bytes

_BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters, possible in file names, that break a line, move the cursor or change the direction of writing."""

_showing: list[Any] = []
"""The open bars, the innermost last."""


_wording: Callable[[str], str] = str


def reword(wording: Callable[[str], str]) -> None:
    """Pass every line through a function before it is printed, for readers without a command line."""
    global _wording
    _wording = wording


def say(line: str = "") -> None:
    """Print one line, above a progress bar if one is showing."""
    line = _wording(line)
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
def whole_output() -> Iterator[None]:
    """Keep a process going whose standard output or standard error is closed or full, and report lost output."""
    with forgiving_streams():
        try:
            yield
        finally:
            sys.stdout.flush()
            if lost := getattr(sys.stdout, "lost", ""):
                complain(f"warning: some of the output could not be written: {lost}")


@contextmanager
def boundary() -> Iterator[None]:
    """Turn a `FastDBError` and a want of memory into one line and exit code 2; others keep their traceback."""
    try:
        yield
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError) and not _has_current_folder():
            complain("error: the current folder was deleted. Change to another folder and run the command again.")
            raise SystemExit(2) from None
        if not is_out_of_memory(error):
            raise
        complain(f"error: {out_of_memory(error, 'fastdb', MORE_MEMORY)}")
        raise SystemExit(2) from None
    except FastDBError as error:
        complain(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise SystemExit(130) from None


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


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
        # Opened once the total is known.
        if not bars:
            bars.append(open_bar(desc=task, unit=unit, total=total or None, unit_scale=unit == "B"))
        bars[0].update(done - bars[0].n)

    try:
        yield update
    finally:
        for opened in bars:
            close_bar(opened)


def open_bar(**options: Any) -> Any:
    """Open a bar of tqdm in a terminal or log file; in a notebook, a line that is rewritten."""
    opened: Any
    if notebook_kernel() is not None:
        opened = LineBar(**options)
    else:
        from tqdm import tqdm

        opened = tqdm(dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10, **options)
    # Registered only now: an interruption while a bar was created left one that cannot be drawn.
    _showing.append(opened)
    return opened


def notebook_kernel() -> Any:
    """Return the IPython kernel of this process; None in a terminal."""
    ipython = sys.modules.get("IPython")
    # A package of this name without the function is being imported, or is another one.
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None)


class LineBar:
    """Progress as a line that a notebook rewrites every two seconds.

    Bars of tqdm send a message several times a second, which freezes browsers that reconnect to a long output.
    """

    _EVERY = 2.0

    def __init__(
        self,
        desc: str,
        total: int | None,
        initial: int = 0,
        unit: str = "it",
        unit_scale: bool = False,
        bar_format: str = "",
    ) -> None:
        self.n, self._desc, self._total, self._unit = initial, desc, total, "" if unit == "it" else f" {unit}"
        self._bytes, self._postfix, self._width, self._written = unit_scale, "", 0, float("-inf")

    def update(self, count: int) -> None:
        """Advance by a number of units."""
        self.n += count
        if time.monotonic() - self._written >= self._EVERY:
            self._rewrite()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set the text after the numbers."""
        self._postfix = f", {text}"

    def write(self, line: str) -> None:
        """Print a line above."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="")
        self._width = 0
        print(line, flush=True)

    def close(self) -> None:
        """Write the last state and end the line."""
        self._rewrite()
        print(flush=True)

    def _rewrite(self) -> None:
        amounts = [format_bytes(of) if self._bytes else str(of) for of in (self.n, self._total) if of is not None]
        line = f"{self._desc}: {' of '.join(amounts)}{'' if self._bytes else self._unit}{self._postfix}"
        line = _BREAKS.sub(" ", line)
        print(f"\r{line:{self._width}}", end="", flush=True)
        self._width, self._written = len(line), time.monotonic()


def close_bar(opened: Any) -> None:
    """Close a progress bar."""
    if opened in _showing:
        _showing.remove(opened)
    opened.close()
