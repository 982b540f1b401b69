"""`in-use.json`, the file in a session's folder that says who trains it: read without trust, written in place.

It is written over in place and always has the same size: Google Drive puts each file that is replaced into its trash,
and a reader finds the old text or the new one, where a file that is cut first would be empty for a moment. Where two
machines make it at once Drive keeps both and calls one `in-use (1).json`; such twins are read too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fastdb.storage.atomic_write import write_bytes

FILE = "in-use.json"
SIZE = 1536
"""Bytes of the file, filled up with spaces: more than the longest lease takes, and less than one block of any disk."""
ASIDE = "in-use.set-aside-"

_TWIN = re.compile(r"in-use ?\(\d+\)\.json")
_REFUSED = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EMLINK)
_LONGEST = 60


class Lease(BaseModel):
    """What the file says: who trains, until when that is known, and a number by which two that claim it are ranked.

    `term` is one more than that of the lease it took over. `since`, `beat` and `ended` are by the owner's clock.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    what: str = "fastdb trains this session; whoever does renews this file every 2 minutes and removes it at the end"
    owner: str = Field(max_length=1000)
    host: str = Field(max_length=1000)
    since: AwareDatetime
    beat: AwareDatetime
    beats: int = Field(ge=0, le=1 << 53)
    ended: AwareDatetime | None = None
    term: int = Field(ge=1, le=1 << 53)
    token: str = Field(pattern=r"^[0-9a-f]{32}$")
    machine: str = Field(max_length=1000)
    boot: str = Field(max_length=1000)
    pid: int = Field(ge=1, lt=1 << 31)
    began: int = Field(ge=0, le=1 << 63)

    @property
    def rank(self) -> tuple[int, int]:
        """Of two leases the one with the greater rank counts, on whichever machine it is asked; no two are equal."""
        return self.term, -int(self.token, 16)

    @property
    def whose(self) -> str:
        """Owner and host, for a line that is shown."""
        return f"{shown(self.owner)} on {shown(self.host)}"

    def same_machine(self, other: Lease) -> bool:
        """Whether both were written where numbers of processes mean the same."""
        return (self.machine, self.host, self.boot) == (other.machine, other.host, other.boot)


def shown(text: str) -> str:
    """Text of a stranger, short and without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST] or "?"


def read(path: Path) -> Lease | str | None:
    """The lease in a file; a clause that says why it is none; or None where there is no such file.

    Raises:
        OSError: the disk does not answer.
    """
    try:
        # Never through a link, and without waiting for whoever would write into a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _REFUSED:
            return "it is a link" if error.errno == errno.ELOOP else f"it cannot be read ({error.strerror})"
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "it is no plain file"
        text = os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
    if not text.strip():
        return "it is empty"
    try:
        return Lease.model_validate_json(text)
    except ValidationError:
        return "it is damaged, or no lease of fastdb"


def files(session: Path) -> list[Path]:
    """The files that may hold a lease of a session: the one of the right name, there or not, and its twins.

    Raises:
        OSError: the folder cannot be listed.
    """
    twins = sorted(entry.name for entry in os.scandir(session) if _TWIN.fullmatch(entry.name))
    return [session / FILE, *(session / name for name in twins)]


def is_lease_file(name: str) -> bool:
    """Whether a file of this name in a session's folder speaks of this folder alone and travels nowhere."""
    return name == FILE or _TWIN.fullmatch(name) is not None or name.startswith(ASIDE)


def write(session: Path, lease: Lease) -> None:
    """Write the lease into a session's folder, over whatever lease is there.

    Raises:
        OSError, StorageError: it cannot be written.
    """
    path = session / FILE
    # A number of bytes that never changes, so that nothing of a longer text can remain behind a shorter one.
    data = (lease.model_dump_json(indent=1, exclude_none=True).encode() + b"\n").ljust(SIZE - 1) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except PermissionError:
        # Of another user, in a folder that both may write.
        write_bytes(path, data)
        return
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], done)
        if os.fstat(descriptor).st_size != len(data):
            os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Move what is no lease out of the lease's way; it may be somebody's.

    Raises:
        OSError: it cannot be moved.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{ASIDE}{number}")):
        number += 1
    path.rename(aside)
    return aside
