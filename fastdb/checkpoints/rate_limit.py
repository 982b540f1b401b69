"""No more bytes a second than were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Called with the bytes that were just written, it waits until they are due at `rate` bytes a second."""

    def __init__(self, rate: float, progress: Callable[[int], None] = lambda _: None) -> None:
        self._rate, self._began, self._done = rate, time.monotonic(), 0
        self.progress = progress

    def __call__(self, count: int) -> None:
        """Note `count` more bytes."""
        self._done += count
        self.progress(self._done)
        ahead = self._done / self._rate - (time.monotonic() - self._began)
        if ahead > 0:
            time.sleep(ahead)
