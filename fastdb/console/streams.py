"""Standard streams that are closed or full, which is no reason to end what a process does."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class ForgivingStream:
    """A text stream that discards what cannot be written.

    Attributes:
        failure: the first error, if there was one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text as far as that is possible; characters that the stream cannot encode are escaped."""
        with self._forgiven():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        with self._forgiven():
            self._stream.flush()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
        except ValueError as error:
            # Only a closed stream raises it.
            self.failure = self.failure or error

    @property
    def lost(self) -> str:
        """Why some of the output was lost; empty if nothing was, or if its reader ended, such as `head`."""
        if self.failure is None or getattr(self.failure, "errno", None) == errno.EPIPE:
            return ""
        return getattr(self.failure, "strerror", None) or str(self.failure)


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Replace standard output and standard error in this context by streams that raise no errors.

    A stream that was closed by the caller becomes the null device. Its number would otherwise be that of the next file
    that is opened, and libraries would write into it.
    """
    open_closed_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_closed_streams() -> None:
    """Open the null device in the place of each standard stream that the caller of this process has closed."""
    with suppress(OSError):
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                # The lowest free number is the closed one.
                os.open(os.devnull, os.O_RDWR)


def _forgiving(stream: Any) -> Any:
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    return stream if isinstance(stream, ForgivingStream) else ForgivingStream(stream)
