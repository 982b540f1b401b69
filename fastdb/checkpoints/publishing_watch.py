"""Waits for publishing that are reported, can be left, and end if nothing advances."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import STAGES
from fastdb.checkpoints.publish import HOLDER, Publishing, pending
from fastdb.errors import FastDBError, StorageError
from fastdb.sessions.events import Emit
from fastdb.sessions.session import CHECKPOINTS, Session

STALLED_AFTER = 600.0
"""Seconds without progress after which the end of a run gives up; a slow disk that advances is waited for."""
FIRST_REPORT = 10.0
"""Seconds of waiting until that is reported."""
REPORT_EVERY = 60.0
"""Seconds between two reports of a wait."""
LEAST = 1 << 20
"""Bytes read and written that count as progress: more than heartbeats and logs write in `STALLED_AFTER` seconds."""
_LISTED_WITHIN = 5.0
"""Seconds that the session's disk may take to list checkpoints for a report."""
ENDING = 60.0
"""Seconds that the records of a run's end may take on a disk that does not answer."""

Result = TypeVar("Result")


class Stalled(StorageError):
    """Publishing has not advanced for too long."""


def await_publishing(
    ended: Callable[[], bool],
    leaving: Callable[[], bool],
    processes: Callable[[], Collection[int]],
    report: Callable[[float], None],
    limit: float | None = None,
) -> bool:
    """Wait until `ended` or `leaving` returns true; return which.

    Args:
        processes: PIDs of the processes that publish.
        report: called now and then with the seconds since the last progress.
        limit: seconds without progress, by default `STALLED_AFTER`.

    Raises:
        Stalled: the processes have read and written less than `LEAST` bytes for `limit` seconds.
    """
    limit = STALLED_AFTER if limit is None else limit
    moved, mark = time.monotonic(), bytes_moved(processes())
    due = moved + FIRST_REPORT
    while not ended():
        if leaving():
            return False
        now, current = time.monotonic(), bytes_moved(processes())
        # Without /proc nothing is known, so nothing counts as stalled.
        if current is None or mark is None or abs(current - mark) >= LEAST:
            moved, mark = now, current
        if now >= due:
            due = now + REPORT_EVERY
            report(now - moved)
        if now - moved >= limit:
            raise Stalled(f"nothing was read or written for {waited(limit)}")
        time.sleep(0.1)
    return True


def publish_rest(
    publishing: Publishing,
    work_folder: Path,
    afterwards: Callable[[], object] = lambda: None,
    leaving: Callable[[], bool] = lambda: False,
) -> bool:
    """Publish everything that is pending, then call `afterwards`; return whether it ended before `leaving`.

    It runs in a thread, because a call to a disk that hangs does not return, not even for Ctrl-C.

    Args:
        work_folder: the session's, whose lookup may hang too.

    Raises:
        Stalled: nothing advances, here or in the process that publishes meanwhile.
        Exception: see `Publishing.run`.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            publishing.run(lambda: True, leaving)
            if not leaving():
                afterwards()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            errors.append(error)

    session = publishing.session
    thread = threading.Thread(target=work, name="publish rest", daemon=True)
    thread.start()
    # Failures are retried for a time that a setting may prolong.
    limit = max(STALLED_AFTER, publishing.longest_failure + FIRST_REPORT)
    ended = await_publishing(
        lambda: not thread.is_alive(),
        leaving,
        lambda: {os.getpid(), *publisher_of(work_folder)},
        # Progress shows as a bar.
        lambda idle: report_wait(session, work_folder, publishing.emit, idle) if idle >= REPORT_EVERY else None,
        limit,
    )
    if errors:
        raise errors[0]
    return ended and not leaving()


def report_wait(session: Session, work_folder: Path, emit: Emit, idle: float) -> None:
    """Emit a note of what the caller waits for, and since when nothing was read or written."""
    since = f"nothing was read or written for {waited(idle)}" if idle >= FIRST_REPORT else "it advances slowly"
    emit("note", kind="publishing awaited", subject=", ".join(pending_names(session, work_folder)), reason=since)


def pending_names(session: Session, work_folder: Path) -> list[str]:
    """Return the names of the pending checkpoints; if the session's disk does not answer in time, of the newest.

    Args:
        work_folder: the session's, whose lookup would need the same disk.
    """
    with suppress(OSError, FastDBError):
        if names := in_time(lambda: [checkpoint.path.name for checkpoint in pending(session)], _LISTED_WITHIN):
            return names
    with suppress(OSError, FastDBError):
        newest = [complete(work_folder / CHECKPOINTS, stage)[-1:] for stage in reversed(STAGES)]
        return [checkpoint.path.name for of_stage in newest for checkpoint in of_stage][:1] or ["the last checkpoint"]
    return ["the last checkpoint"]


def publisher_of(work_folder: Path) -> list[int]:
    """Return the PID of the process of this machine that published a session last, which may have ended."""
    with suppress(OSError, ValueError):
        return [int((work_folder / HOLDER).read_text(encoding="ascii"))]
    return []


def in_time(act: Callable[[], Result], seconds: float = ENDING) -> Result:
    """Return the result of a function that may use a disk which does not answer.

    Raises:
        StorageError: it takes longer than `seconds`; it continues in a thread.
        Exception: its own.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(act())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="in time", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise StorageError(
            f"the disk has not answered for {waited(seconds)}", fix="Mount it again and run the same command again."
        )
    return results[0]


def bytes_moved(processes: Collection[int]) -> int | None:
    """Return the bytes that processes have read and written; None where the system does not count them."""
    counted = list[int]()
    for process in processes:
        with suppress(OSError, ValueError, KeyError):
            lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
            facts = dict(line.split(": ", 1) for line in lines)
            counted.append(int(facts["rchar"]) + int(facts["wchar"]))
    return sum(counted) if counted else None


def waited(seconds: float) -> str:
    """Format a duration: `40 seconds`, `10 minutes`."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
