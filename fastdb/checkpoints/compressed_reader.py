"""Tensors in little room, exactly: a packed file opened, its tensors read one by one.

What the format is stands in `packed_index`; `packed_writer` makes such files.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from fastdb.checkpoints import adam_moments as moments
from fastdb.checkpoints.byte_planes import CHUNK, EXPONENTS, decode, exponents, restored, unpressed
from fastdb.checkpoints.compressed_index import (
    DIFFERENCE,
    PLANES,
    SECOND,
    Origin,
    PackedTensor,
    lines_length,
    read_index,
)
from fastdb.errors import CheckpointError
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_bits import BITS_TYPES, Bits, Numbers
from fastdb.formats.tensor_info import SIZES, Fault, TensorInfo, shown
from fastdb.storage.atomic_write import explained
from fastdb.storage.manifest import sha256

if TYPE_CHECKING:
    import torch

OLDER = "Go on from an older checkpoint, or take this file from a copy."

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Base:
    """What differences are to: tensors that can be had again, by the names of those to be packed."""

    sha256: str
    """Of the file they come from, in hex: with another one nothing is read."""
    tensors: Mapping[str, Callable[[], Numbers]]
    forget: Callable[[], None] = lambda: None
    """Give back the memory that reading one took."""

    @classmethod
    def of(cls, path: Path, rename: Callable[[str], str] = str, *, digest: str = "") -> Base:
        """A model file as a base; `rename` makes its names those of what is packed.

        Args:
            path: any file that `open_tensors` reads.
            rename: from a name in the file.
            digest: its SHA-256 in hex, where that was just found; else the file is read for it.

        Raises:
            ModelError: it is no model file, or damaged.
            StorageError: the disk fails.
        """
        file = open_tensors(path)
        tensors = {rename(name): partial(file.numbers, name) for name in file.tensors}
        with explained(path):
            return cls(digest or sha256(path), tensors, file.forget)

    def like(self, name: str, dtype: str, shape: tuple[int, ...]) -> Bits | None:
        """The bits of a tensor of the base in a type, (numbers,), if it has one of this name and shape.

        None too where its numbers cannot be brought to that type alike by every machine: NaN is not.
        """
        if name not in self.tensors:
            return None
        known = self.tensors[name]()
        return known.to(dtype) if known.shape == shape and known.dtype in EXPONENTS else None


@dataclass(frozen=True)
class Packed:
    """A packed file whose index was found right; a block is checked when it is read."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    """By name, in the file's order. Where one's numbers lie is of use only here."""
    base_sha256: str | None
    """Of the file that differences are to, in hex."""
    base: Base | None
    origin: Origin | None
    """The safetensors file that was packed, where it was one."""
    threads: int
    _entries: Mapping[str, PackedTensor] = field(repr=False)
    _length: int = field(repr=False)
    _ahead: dict[str, Numbers] = field(default_factory=dict, repr=False)
    """The second moment that was last read for its first one: in a file's order it is the next to be asked for."""

    @classmethod
    def open(cls, path: Path, base: Base | None = None, *, threads: int = 1) -> Packed:
        """Read the index of a packed file.

        Args:
            path: a file of `write_packed`.
            base: the one it was written with; without it only what is no difference can be read.
            threads: that decode at the same time.

        Raises:
            CheckpointError: it is damaged or no such file, or differs from another base.
            StorageError: the disk fails, or reading is forbidden.
        """
        with _told(path), path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            index = read_index(file, length)
        if base is not None and index.base is not None and base.sha256 != index.base:
            raise CheckpointError(
                f"its weights are differences to the base model's file {index.base[:12]}, and this one is "
                f"{base.sha256[:12]}",
                where=path,
                fix="Put back the base model this session began with.",
            )
        tensors = MappingProxyType({name: one.info for name, one in index.tensors.items()})
        return cls(path, tensors, index.base, base, index.origin, threads, index.tensors, length)

    @property
    def names(self) -> tuple[str, ...]:
        """Its tensors' names in the file's order."""
        return tuple(self.tensors)

    def read(self, name: str) -> torch.Tensor:
        """A tensor, bit for bit as it was written; a copy.

        Memory, Raises: see `numbers`.
        """
        return self.numbers(name).tensor()

    def numbers(self, name: str) -> Numbers:
        """The numbers of a tensor, bit for bit as they were written; a copy.

        Memory: the tensor, that of the base, and about 100 MB for each thread.

        Raises:
            CheckpointError: there is no such tensor, it is damaged, or it is a difference and there is no base.
            StorageError: the disk fails.
        """
        one = self._entries.get(name)
        if one is None:
            raise CheckpointError(f"holds no tensor {name!r}", where=self.path, fix=OLDER)
        if name in self._ahead:
            return self._ahead.pop(name)
        bits, digest = np.empty(one.info.elements, BITS_TYPES[SIZES[one.info.dtype]]), hashlib.sha256()
        with _told(self.path), self.path.open("rb") as file, ThreadPoolExecutor(self.threads) as pool:
            if file.seek(0, 2) != self._length:
                raise Fault("it was changed while it was read")
            file.seek(one.info.start)
            way = self._way(one, file)

            def decoded(chunk: tuple[int, int, list[bytes]]) -> tuple[int, int, Bits]:
                start, end, planes = chunk
                return start, end, way(planes, start, end)

            blocks = _blocks(file, one)
            # A thread for one chunk alone would only be waited for.
            parts = (
                in_turn(pool, decoded, blocks, self.threads + 1) if one.info.elements > CHUNK else map(decoded, blocks)
            )
            for start, end, part in parts:
                bits[start:end] = part
                digest.update(bits[start:end].data)
            if digest.hexdigest() != one.sha256:
                raise Fault(f"{shown(name)} is not what was written")
        if self.base is not None:
            self.base.forget()
        return Numbers(one.info.dtype, one.info.shape, bits)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each name and its tensor, in the file's order, one in memory at a time.

        Raises:
            CheckpointError, StorageError: see `read`.
        """
        for name in self.tensors:
            yield name, self.read(name)

    def forget(self) -> None:
        """Nothing to give back: what is read is a copy. There because a `TensorFile` has it."""

    def _way(self, one: PackedTensor, file: BinaryIO) -> Callable[[list[bytes], int, int], Bits]:
        """What makes the numbers from one to another of their planes."""
        if one.coding == PLANES:
            return lambda planes, start, end: decode(planes, end - start)
        if one.coding == DIFFERENCE:
            known = self._known(one)

            def moved(planes: list[bytes], start: int, end: int) -> Bits:
                beside = known[start:end]
                return restored(decode(planes, end - start, exponents(beside, one.info.dtype)), beside)

            return moved
        expected = self._expected(one, file)
        return lambda planes, start, end: decode(planes, end - start, expected.key(start, end))

    def _expected(self, one: PackedTensor, file: BinaryIO) -> moments.Expected:
        of, _, last = one.name.rpartition("/")

        def told(other: str) -> tuple[str, int]:
            there = self._entries.get(f"{of}/{other}")
            # No moment but the second is read for another, so that none is asked for what it is itself read for.
            if there is None or there.coding not in (PLANES, *([SECOND] if other == moments.SECOND else [])):
                return "", 0
            return there.info.dtype, there.info.elements

        def beside(other: str) -> np.ndarray:
            numbers = self.numbers(f"{of}/{other}")
            if other == moments.SECOND:
                self._ahead.clear()
                self._ahead[f"{of}/{other}"] = numbers
            return numbers.values

        if not moments.fits(last, one.info.elements, told):
            raise Fault(f"{shown(one.name)} is coded by tensors that are not there")
        if one.coding != SECOND:
            return moments.of_first(beside)
        lines = np.frombuffer(unpressed(_block(file, one, *one.blocks[0]), lines_length(one.info.shape)), "<i2")
        return moments.of_second(lines, moments.columns_of(one.info.shape), beside)

    def _known(self, one: PackedTensor) -> Bits:
        known = self.base.like(one.name, one.info.dtype, one.info.shape) if self.base is not None else None
        if known is None:
            raise CheckpointError(
                f"{shown(one.name)} is a difference to a tensor of the base model, which is not there",
                where=self.path,
                fix="Put back the base model this session began with.",
            )
        return known


def in_turn(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], given: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """What `work` makes of each thing given, in their order; `ahead` of them are in memory at a time."""
    waiting: deque[Future[Made]] = deque()
    for one in given:
        waiting.append(pool.submit(work, one))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _blocks(file: BinaryIO, one: PackedTensor) -> Iterator[tuple[int, int, list[bytes]]]:
    """Of each chunk where its numbers begin and end, and its planes as they are stored.

    Raises:
        Fault: one is cut short or damaged.
    """
    for start, end, blocks in one.chunks():
        yield start, end, [_block(file, one, length, crc) for length, crc in blocks]


def _block(file: BinaryIO, one: PackedTensor, length: int, crc: int) -> bytes:
    block = file.read(length)
    if len(block) != length or zlib.crc32(block) != crc:
        raise Fault(f"{shown(one.name)} has changed since it was written")
    return block


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what is wrong with a packed file into one clear line."""
    try:
        with explained(path):
            yield
    except Fault as fault:
        raise CheckpointError(f"cannot be used: {fault}", where=path, fix=OLDER) from fault
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError("there is no such file", where=path, fix=OLDER) from error
