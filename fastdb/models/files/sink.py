"""Bytes on their way into a file, noted as they go: what lies there later can be held against what was meant."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from fastdb.errors import ModelError

BLOCK = 4 << 20
AGAIN = "Run the same command again; if it happens again, the disk is failing."


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes written one after the other, their CRC-32, and what they are: a tensor's name, or "" between tensors."""

    name: str
    length: int
    crc: int


@dataclass(frozen=True)
class Written:
    """What was meant to be written: everything in order, and the SHA-256, in hex, of all of it."""

    stretches: tuple[Stretch, ...]
    sha256: str

    @property
    def bytes(self) -> int:
        """The length of the file."""
        return sum(stretch.length for stretch in self.stretches)


class Sink(RawIOBase):
    """A file that can only be written from its beginning to its end, which is how it is hashed."""

    def __init__(self, file: Any) -> None:
        self._file, self._digest, self._at = file, hashlib.sha256(), 0
        self._stretches: list[Stretch] = []
        self._name = ""

    def named(self, name: str) -> Sink:
        """Call what comes next by the name of its tensor, or by "" again."""
        self._name = name
        return self

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        self._file.write(data)
        self._digest.update(data)
        length, crc = memoryview(data).nbytes, 0
        if self._stretches and self._stretches[-1].name == self._name:
            before = self._stretches.pop()
            length, crc = before.length + length, before.crc
        self._stretches.append(Stretch(self._name, length, zlib.crc32(data, crc)))
        self._at += memoryview(data).nbytes
        return memoryview(data).nbytes

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        return self._at

    def flush(self) -> None:
        """Pass on what the file still holds."""
        self._file.flush()

    @property
    def written(self) -> Written:
        """What was written so far."""
        return Written(tuple(self._stretches), self._digest.hexdigest())


def read_back(path: Path, written: Written, progress: Callable[[str], None]) -> None:
    """Read a file from where it lies and hold every byte against what was meant.

    `progress` is told the name of each stretch that was found right.

    Raises:
        ModelError: it is shorter, longer or another; the message names the tensor.
    """
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # What the system still has in memory says nothing of what is on the disk; the file was flushed to it.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        block = bytearray(BLOCK)
        for stretch in written.stretches:
            crc, left = 0, stretch.length
            while left:
                count = file.readinto(memoryview(block)[: min(left, BLOCK)])
                if not count:
                    raise ModelError(f"is cut short within {_called(stretch)}", where=path, fix=AGAIN)
                crc, left = zlib.crc32(memoryview(block)[:count], crc), left - count
            if crc != stretch.crc:
                raise ModelError(f"{_called(stretch)} read back is not what was written", where=path, fix=AGAIN)
            progress(stretch.name)
        if file.read(1):
            raise ModelError("is longer than what was written", where=path, fix=AGAIN)


def _called(stretch: Stretch) -> str:
    return f"the tensor {stretch.name}" if stretch.name else "its description of the tensors"
