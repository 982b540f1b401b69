"""File writer that records checksums for verifying the file afterwards."""

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
"""Called with the number of bytes just written to the disk; it may sleep to limit the rate."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Length and CRC-32 of consecutive bytes.

    `name` is that of the tensor in them, or "" between tensors.
    """

    name: str
    length: int
    crc: int


@dataclass(frozen=True)
class Written:
    """Checksums of a written file."""

    stretches: tuple[Stretch, ...]
    """All bytes of the file, in order."""
    sha256: str
    """Of the whole file, in hex."""
    bytes: int
    """Length of the file."""


class Sink:
    """A file written sequentially and hashed along the way.

    `pace` is called after each block of at most 2 MiB.

    Raises:
        OSError: the disk is full, failing or gone.
    """

    position: int
    """Number of bytes written."""

    def __init__(self, path: Path, pace: Pace | None = None) -> None:
        self._file, self._digest, self._pace = BlockWriter(path), hashlib.sha256(), pace
        self.position = 0
        self._buffered = 0
        self._stretches: list[Stretch] = []

    def write(self, data: bytes | memoryview, name: str = "", crc: int | None = None) -> None:
        """Write all of `data`.

        It belongs to the tensor `name` or to none; `crc` is its CRC, if known.
        """
        with memoryview(data) as view:
            self._note(name, view, crc)
            done = 0
            while done < view.nbytes:
                count = min(BLOCK - self._buffered, view.nbytes - done)
                self._file.block[self._buffered : self._buffered + count] = view[done : done + count]
                self._buffered, done = self._buffered + count, done + count
                if self._buffered == BLOCK:
                    self._flush()
            self.position += view.nbytes

    def finish(self) -> Written:
        """Write the buffered rest and return the checksums."""
        self._flush()
        return Written(tuple(self._stretches), self._digest.hexdigest(), self.position)

    def _note(self, name: str, data: memoryview, crc: int | None) -> None:
        last = self._stretches[-1] if self._stretches else None
        if last is not None and last.name == name:
            self._stretches[-1] = Stretch(name, last.length + data.nbytes, zlib.crc32(data, last.crc))
        else:
            self._stretches.append(Stretch(name, data.nbytes, zlib.crc32(data) if crc is None else crc))

    def _flush(self) -> None:
        # Hashed while the block is still in the processor's cache.
        self._digest.update(self._file.block[: self._buffered])
        self._file.put(self._buffered)
        if self._pace is not None:
            self._pace(self._buffered)
        self._buffered = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def read_back(path: Path, written: Written, progress: Callable[[str], None]) -> None:
    """Read a file from the disk and verify it.

    `progress` is called with the name of each verified stretch.

    Raises:
        ModelError: the file is shorter, longer or different; the message names the tensor.
    """
    with closing(blocks_of(path)) as blocks:
        block = next(blocks, None)
        at = 0
        for stretch in written.stretches:
            crc, left = 0, stretch.length
            while left:
                if block is not None and at == block.nbytes:
                    block, at = next(blocks, None), 0
                if block is None:
                    raise ModelError(f"the file is truncated within {_label(stretch)}", where=path, fix=AGAIN)
                count = min(left, block.nbytes - at)
                crc, left, at = zlib.crc32(block[at : at + count], crc), left - count, at + count
            if crc != stretch.crc:
                raise ModelError(f"{_label(stretch)} on disk differs from the written data", where=path, fix=AGAIN)
            progress(stretch.name)
        if block is not None and (at < block.nbytes or next(blocks, None) is not None):
            raise ModelError("the file is longer than the written data", where=path, fix=AGAIN)


def _label(stretch: Stretch) -> str:
    return f"the tensor {stretch.name}" if stretch.name else "the header"
