"""The file `in-use.json` of a session, which contains the lease of its trainer.

It is untrusted input, rewritten in place with a constant size: Google Drive moves each replaced file to its trash, and
a truncated file would be empty for a moment. If two machines create it at once, Drive keeps both and names one of them
`in-use (1).json`; such duplicates are read too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fastdb.runtime import machine
from fastdb.storage.atomic_write import write_bytes
from fastdb.storage.set_aside import ASIDE as SET_ASIDE

FILE = "in-use.json"
SIZE = 1536
"""Bytes of the file, padded with spaces: longer than any lease, and shorter than one block of any disk."""
ASIDE = "in-use."
"""Start of the name, before `set-aside-N`, of an invalid lease that makes way for a new one."""

_DUPLICATE = re.compile(r"in-use ?\(\d+\)\.json")
_REFUSED = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EMLINK)
_LONGEST = 60


def _printable(text: str) -> str:
    """Return an untrusted text shortened and without control characters, which could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST] or "?"


_Name = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]


class Lease(BaseModel):
    """Claim of one process on training a session.

    `term` is one more than the term of the lease that it replaced. `since`, `beat` and `ended` are times of the owner's
    clock; `beats` counts the renewals.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    what: str = "fastdb trains this session; the trainer renews this file every 2 minutes and removes it at the end"
    owner: _Name
    host: _Name
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
        """Rank by which all machines choose the same one of two leases; the greater wins, and no two are equal."""
        return self.term, -int(self.token, 16)

    @property
    def whose(self) -> str:
        """Owner and host."""
        return f"{self.owner} on {self.host}"

    def is_local(self) -> bool:
        """Return whether the lease was written on this machine since it started, so that its process ID is valid here.

        Raises:
            OSError: the cache cannot be written.
        """
        here = (machine.machine_number(), _printable(machine.host_name()), machine.boot())
        return (self.machine, self.host, self.boot) == here


def read(path: Path) -> Lease | str | None:
    """Return the lease in a file, the reason why it is invalid as a clause, or None if there is no file.

    Raises:
        OSError: the disk does not answer.
    """
    try:
        # Neither through a link nor waiting for the writer of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _REFUSED:
            return "it is a link" if error.errno == errno.ELOOP else f"it cannot be read ({error.strerror})"
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "it is not a regular file"
        text = os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
    if not text.strip():
        return "it is empty"
    try:
        return Lease.model_validate_json(text)
    except ValidationError:
        return "it is damaged"


def files(session: Path) -> list[Path]:
    """Return the files that may contain a session's lease: `in-use.json`, existing or not, and its duplicates.

    Raises:
        OSError: the folder cannot be listed.
    """
    duplicates = sorted(entry.name for entry in os.scandir(session) if _DUPLICATE.fullmatch(entry.name))
    return [session / FILE, *(session / name for name in duplicates)]


def is_lease_file(name: str) -> bool:
    """Return whether a file of this name in a session's folder must not be copied to another session."""
    return name == FILE or _DUPLICATE.fullmatch(name) is not None or name.startswith(f"{ASIDE}{SET_ASIDE}")


def write(session: Path, lease: Lease) -> None:
    """Write a lease into a session's folder, over any other lease.

    Raises:
        OSError, StorageError: it cannot be written.
    """
    path = session / FILE
    # A constant size, so that nothing of a longer text remains behind a shorter one.
    data = (lease.model_dump_json(indent=1, exclude_none=True).encode() + b"\n").ljust(SIZE - 1) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except PermissionError:
        # Another user's file in a folder that both may write.
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
