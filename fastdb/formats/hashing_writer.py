"""Bytes on their way into a file, noted as they go: what lies there later can be held against what was meant."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fastdb.errors import ModelError
from fastdb.formats.direct_io import BLOCK, BlockWriter, blocks_of

AGAIN = "Run the same command again; if it happens again, the disk is failing."


Pace = Callable[[int], None]
"""Told how many bytes have just gone out to the disk; it may wait before it returns, so that no more go for a while."""


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


class Sink:
    """A file that can only be written from its beginning to its end, which is how it is hashed.

    `pace` is called after each block, 2 MiB at most.

    Raises:
        OSError: the disk is full, failing or gone.
    """

    def __init__(self, path: Path, pace: Pace | None = None) -> None:
        self._file, self._digest, self._pace = BlockWriter(path), hashlib.sha256(), pace
        self._held = 0
        self._before = 0
        self._stretches: list[Stretch] = []

    def write(self, data: bytes | memoryview, name: str = "", crc: int | None = None) -> None:
        """Write all of `data`: a tensor's, by its `name`, or what lies between tensors; `crc` is its CRC, if known."""
        with memoryview(data) as whole:
            self._note(name, whole, crc)
            done = 0
            while done < whole.nbytes:
                count = min(BLOCK - self._held, whole.nbytes - done)
                self._file.block[self._held : self._held + count] = whole[done : done + count]
                self._held, done = self._held + count, done + count
                if self._held == BLOCK:
                    self._put()

    def tell(self) -> int:
        """How many bytes were written."""
        return self._before + self._held

    def finish(self) -> Written:
        """Write what is still held; what was written in all."""
        self._put()
        return Written(tuple(self._stretches), self._digest.hexdigest())

    def _note(self, name: str, data: memoryview, crc: int | None) -> None:
        last = self._stretches[-1] if self._stretches else None
        if last is not None and last.name == name:
            self._stretches[-1] = Stretch(name, last.length + data.nbytes, zlib.crc32(data, last.crc))
        else:
            self._stretches.append(Stretch(name, data.nbytes, zlib.crc32(data) if crc is None else crc))

    def _put(self) -> None:
        # Hashed while the processor still has it near.
        self._digest.update(self._file.block[: self._held])
        self._file.put(self._held)
        if self._pace is not None:
            self._pace(self._held)
        self._before, self._held = self._before + self._held, 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def read_back(path: Path, written: Written, progress: Callable[[str], None]) -> None:
    """Read a file from where it lies and hold every byte against what was meant.

    `progress` is told the name of each stretch that was found right.

    Raises:
        ModelError: it is shorter, longer or another; the message names the tensor.
    """
    with closing(blocks_of(path)) as blocks:
        piece = next(blocks, None)
        at = 0
        for stretch in written.stretches:
            crc, left = 0, stretch.length
            while left:
                if piece is not None and at == piece.nbytes:
                    piece, at = next(blocks, None), 0
                if piece is None:
                    raise ModelError(f"is cut short within {_called(stretch)}", where=path, fix=AGAIN)
                count = min(left, piece.nbytes - at)
                crc, left, at = zlib.crc32(piece[at : at + count], crc), left - count, at + count
            if crc != stretch.crc:
                raise ModelError(f"{_called(stretch)} read back is not what was written", where=path, fix=AGAIN)
            progress(stretch.name)
        if piece is not None and (at < piece.nbytes or next(blocks, None) is not None):
            raise ModelError("is longer than what was written", where=path, fix=AGAIN)


def _called(stretch: Stretch) -> str:
    return f"the tensor {stretch.name}" if stretch.name else "its description of the tensors"
