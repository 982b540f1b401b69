"""A file from a server onto this disk: goes on where it stopped, in whichever process; verified before it counts.

huggingface_hub 1.27 and gdown 5 fetch files too, but a process that was killed leaves them nothing to go on from: so
the bytes of all sources come through here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.downloads.http_request import WAIT, Remote, asked, connection
from fastdb.downloads.http_response import AGAIN, a_page, file_name, is_encoded, is_page, placed, refusal, wait_asked
from fastdb.downloads.partial_file import Part, begin, find
from fastdb.downloads.verify import fault_of
from fastdb.errors import ModelError, StorageError
from fastdb.reporting import format_bytes
from fastdb.storage.atomic_write import explained, make_folder

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and those of the whole, 0 where nobody knows."""

TRIES = 5
"""How often in a row a server may fail to bring anything new."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 90.0
"""Seconds between tries: the first, doubled each time, and the longest that a server may ask for."""

PROGRESS = 4096
"""Bytes beyond the furthest point so far that count as something new."""

SPARE = 32_000_000
"""Bytes of the disk that a download leaves free."""


class Again(Exception):
    """This try failed, another one may not; `wait` is what the server asks for in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait


class Patience:
    """How long to go on trying: as long as something new comes, else `TRIES` times, waiting longer each time."""

    def __init__(self, shown: str) -> None:
        self._shown, self._furthest, self._failures = shown, 0, 0

    def after(self, error: Exception, done: int = 0, total: int | None = None) -> None:
        """Wait for the next try.

        Raises:
            ModelError: there is no sense in one.
        """
        if done >= self._furthest + PROGRESS:
            self._furthest, self._failures = done, 0
            return
        self._failures += 1
        wait = max(error.wait if isinstance(error, Again) else 0.0, FIRST_WAIT * 2 ** (self._failures - 1))
        if self._failures < TRIES and wait <= LONGEST_WAIT:
            time.sleep(wait)
            return
        if wait > LONGEST_WAIT:
            why, fix = f"{_why(error)} and asks to wait {wait:.0f} s", "Try again then."
        elif done:
            whole = f" of {format_bytes(total)}" if total else ""
            why = f"was cut short after {format_bytes(done)}{whole}: {_why(error)}, {self._failures} times in a row"
            fix = "Run the same command again: it goes on from there, if the server can."
        else:
            why, fix = f"{_why(error)}, {self._failures} times in a row", "Check the network, and try again later."
        raise ModelError(why, where=self._shown, fix=fix) from None


def download_first(remotes: Sequence[Remote], folder: Path, progress: Progress | None = None) -> Path:
    """Download a file from the first of several servers that has it; see `download`.

    Raises:
        ModelError: none has it; each with its reason.
        StorageError: the disk is full or cannot be written.
    """
    faults: list[ModelError] = []
    for remote in remotes:
        try:
            return download(remote, folder, progress)
        except ModelError as error:
            faults.append(error)
    raise together(faults)


def together(faults: Sequence[ModelError]) -> ModelError:
    """Why each of several sources failed, in one line."""
    if len(faults) == 1:
        return faults[0]
    reasons = "; ".join(f"{fault.where}: {fault.what}" for fault in faults)
    return ModelError(f"none of {len(faults)} sources has it ({reasons})", fix=faults[0].fix)


def download(remote: Remote, folder: Path, progress: Progress | None = None) -> Path:
    """Download a file into a folder of the cache; it gets its name when it is whole and right.

    What an earlier run left of it is gone on from. A connection that breaks is taken up again as long as bytes come.

    Raises:
        ModelError: the server refuses, is not there, gives a web page, breaks off, or gives another file.
        StorageError: the disk is full or cannot be written.
    """
    make_folder(folder)
    work = _Download(remote, folder, progress)
    while True:
        part = work.whole()
        with explained(part.path):
            size_known = part.total if remote.size is None else remote.size
            found = fault_of(part.path, sha256=remote.sha256, size=size_known, name=part.name)
            if not part.done and remote.size is None:
                found = "is empty"
            if not found:
                return part.publish()
            part.discard()
        if not work.resumed:
            raise ModelError(
                f"what came is not the right file: it {found}",
                where=remote.shown,
                fix="Try again; if it stays so, the file was changed or damaged there: choose another source.",
            )
        # An old beginning may have been the fault: once more from nothing.
        work = _Download(remote, folder, progress)


def check_room(folder: Path, bytes_to_come: int, shown: str) -> None:
    """Refuse a download that the disk has no room for, before its first byte.

    Raises:
        StorageError: it has not.
    """
    with explained(folder):
        free = shutil.disk_usage(folder).free
    if bytes_to_come + SPARE > free:
        raise StorageError(
            f"needs {format_bytes(bytes_to_come)} more on the disk of {folder}, and {format_bytes(free)} are free",
            where=shown,
            fix="Free some space, or set FASTDB_CACHE to a folder on a larger disk.",
        )


class _Download:
    """One file on its way."""

    def __init__(self, remote: Remote, folder: Path, progress: Progress | None) -> None:
        self.remote, self.folder = remote, folder
        self.part: Part | None = find(folder, remote)
        self.resumed = self.part is not None and self.part.done > 0
        self.tell = progress or (lambda done, total: None)

    def whole(self) -> Part:
        """All bytes of the file, as the server gives them."""
        import httpx

        patience = Patience(self.remote.shown)
        with connection() as client:
            while True:
                try:
                    return self._try(client)
                except (httpx.RequestError, Again) as error:
                    done, total = (self.part.done, self.part.total) if self.part else (0, None)
                    patience.after(error, done, total)

    def _try(self, client: httpx.Client) -> Part:
        with asked(client, self.remote, self.part.rest() if self.part else {}) as response:
            pieces = response.iter_bytes() if is_encoded(response) else response.iter_raw()
            first = b""
            if response.status_code == 200:
                # Looked at before what there is already makes room for it: it may be the page of some gateway.
                first = _opening(pieces)
                if is_page(first, response.headers.get("content-type", "").lower()):
                    raise a_page(self.remote)
            part = self.part = self._begun(response)
            if response.status_code == 416:
                return part
            total = part.total
            if total is not None:
                check_room(self.folder, total - part.done, self.remote.shown)
            self._take(part, chain((first,), pieces))
        if total is not None and part.done < total:
            raise Again("the connection closes early")
        return part

    def _begun(self, response: httpx.Response) -> Part:
        """The part that the bytes of an answer belong to: the one there is, or a new one where it gives the whole."""
        start, total = placed(response)
        part, status = self.part, response.status_code
        if status in AGAIN:
            raise Again(f"the server answers {status}", wait_asked(response))
        if part is not None and part.contradicted_by(response, total):
            raise self._other_length(f"speaks of {part.total} bytes first and of {total} then")
        if status == 416 and part is not None and part.done:
            if total == part.done and part.continued_by(response, part.done, total):
                return part
        elif status == 206 and part is not None and part.continued_by(response, start, total):
            return part
        elif status == 200:
            if None not in (total, self.remote.size) and total != self.remote.size:
                raise self._other_length(f"announces {total} bytes")
            return begin(
                self.folder, self.remote.name or file_name(response, self.remote.url), self.remote, response, total
            )
        elif status != 206:
            raise refusal(self.remote, status)
        # The server has another file now, or does not keep to what it said: from the beginning.
        if part is not None:
            part.discard()
        self.part = None
        raise Again("the server gives other bytes than were asked for")

    def _take(self, part: Part, pieces: Iterable[bytes]) -> None:
        """Write what comes behind what is there."""
        done, limit = part.done, self.remote.size or part.total
        with explained(part.path), part.path.open("ab") as stream:
            for piece in pieces:
                stream.write(piece)
                done += len(piece)
                if limit is not None and done > limit:
                    raise self._other_length("sends more bytes than it announced")
                self.tell(done, limit or 0)

    def _other_length(self, what: str) -> ModelError:
        if self.part is not None:
            self.part.discard()
        right = f", where {self.remote.size} are right" if self.remote.size else ""
        return ModelError(
            f"the server {what}{right}",
            where=self.remote.shown,
            fix="The file was changed or is damaged there: choose another source.",
        )


def _opening(pieces: Iterator[bytes]) -> bytes:
    """Enough of a body to tell what it is."""
    first = b""
    for piece in pieces:
        first += piece
        if len(first) >= 512:
            break
    return first


def _why(error: Exception) -> str:
    """A failed try as a clause; the text of the exception may hold an address, and stays out."""
    import httpx

    if isinstance(error, Again):
        return error.why
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return "the server cannot be reached"
    if isinstance(error, httpx.TimeoutException):
        return f"the server says nothing for {WAIT:.0f} s"
    return "the connection breaks off"
