"""Reader and writer of compressed tensor files.

`compressed_index` describes the format.
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
from typing import BinaryIO, TypeVar

import numpy as np

from fastdb.checkpoints.adam_moments import SECOND, can_sort, lines_length, sort_keys
from fastdb.checkpoints.byte_planes import CHUNK, EXPONENTS, decode, encode
from fastdb.checkpoints.compressed_index import (
    DIFFERENCE,
    MAGIC,
    MOST_BYTES,
    PLANES,
    SECOND_MOMENT,
    Origin,
    PackedTensor,
    index_text,
    read_index,
)
from fastdb.errors import CheckpointError
from fastdb.formats.hashing_writer import Pace, Sink, Written
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_bits import BITS_TYPES, Bits, Numbers
from fastdb.formats.tensor_info import SIZES, Fault, TensorInfo, contiguous, shown
from fastdb.storage.atomic_write import explained
from fastdb.storage.manifest import sha256

OLDER = "Resume from an older checkpoint, or restore this file from a copy."

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Base:
    """Known tensors to which differences refer, by the names of the compressed tensors."""

    sha256: str
    """Hash of the file that contains them, in hex; reading requires the same file."""
    tensors: Mapping[str, Callable[[], Numbers]]
    forget: Callable[[], None] = lambda: None
    """Releases the memory used by reading a tensor."""

    @classmethod
    def of(cls, path: Path, rename: Callable[[str], str] = str, *, digest: str = "") -> Base:
        """Open a model file as a base.

        Args:
            path: any file that `open_tensors` reads.
            rename: converts a name in the file to the name of the compressed tensor.
            digest: the file's SHA-256 in hex, if it was just computed; otherwise the file is read for it.

        Raises:
            ModelError: it is not a model file, or damaged.
            StorageError: the disk fails.
        """
        file = open_tensors(path)
        tensors = {rename(name): partial(file.numbers, name) for name in file.tensors}
        with explained(path):
            return cls(digest or sha256(path), tensors, file.forget)


def _known(base: Base | None, name: str, dtype: str, shape: tuple[int, ...]) -> Bits | None:
    """Return the bits of a tensor of the base, (numbers,), converted to `dtype`.

    None if there is no tensor of this name and shape, or if machines may convert its numbers differently, as NaN.
    """
    if base is None or dtype not in EXPONENTS or name not in base.tensors:
        return None
    known = base.tensors[name]()
    return known.to(dtype) if known.shape == shape and known.dtype in EXPONENTS else None


@dataclass(frozen=True)
class Packed:
    """A compressed file with a valid index; its blocks are verified when they are read."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    """By name, in the file's order; `start` is meaningful only here."""
    base_sha256: str | None
    """Hash, in hex, of the file to which differences refer."""
    base: Base | None
    origin: Origin | None
    """The safetensors file that was compressed, if it was a file."""
    threads: int
    _entries: Mapping[str, PackedTensor] = field(repr=False)
    _length: int = field(repr=False)
    _ahead: dict[str, Numbers] = field(default_factory=dict, repr=False)
    """The second moment that was last read for its first moment; in the file's order it is read next."""

    @classmethod
    def open(cls, path: Path, base: Base | None = None, *, threads: int = 1) -> Packed:
        """Read the index of a compressed file.

        Args:
            path: a file of `write_packed`.
            base: the base it was written with; without it only tensors that are not differences can be read.
            threads: number of threads that decode.

        Raises:
            CheckpointError: the file is damaged, of another kind, or refers to another base.
            StorageError: the disk fails, or reading is forbidden.
        """
        with _faults_explained(path), path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            index = read_index(file, length)
        if base is not None and index.base is not None and base.sha256 != index.base:
            raise CheckpointError(
                f"it needs the base model file {index.base[:12]}, but the base model file here is {base.sha256[:12]}",
                where=path,
                fix="Restore the base model that this session started with.",
            )
        tensors = MappingProxyType({name: tensor.info for name, tensor in index.tensors.items()})
        return cls(path, tensors, index.base, base, index.origin, threads, index.tensors, length)

    def numbers(self, name: str) -> Numbers:
        """Return a copy of the numbers of a tensor, bit for bit as they were written.

        Memory: the tensor, that of the base, and about 100 MB per thread.

        Raises:
            CheckpointError: there is no such tensor, it is damaged, or it is a difference and there is no base.
            StorageError: the disk fails.
        """
        tensor = self._entries.get(name)
        if tensor is None:
            raise CheckpointError(f"it has no tensor {name!r}", where=self.path, fix=OLDER)
        if name in self._ahead:
            return self._ahead.pop(name)
        info = tensor.info
        bits, digest = np.empty(info.elements, BITS_TYPES[SIZES[info.dtype]]), hashlib.sha256()
        with _faults_explained(self.path), self.path.open("rb") as file, ThreadPoolExecutor(self.threads) as pool:
            if file.seek(0, 2) != self._length:
                raise Fault("it was changed while it was read")
            file.seek(info.start)
            decoder = self._decoder(tensor, file)

            def decoded(chunk: tuple[int, int, list[bytes]]) -> tuple[int, int, Bits]:
                start, end, planes = chunk
                return start, end, decoder(planes, start, end)

            chunks = (
                (start, end, [_block(file, tensor, length, crc) for length, crc in blocks])
                for start, end, blocks in tensor.chunks()
            )
            # A thread gains nothing for a single chunk.
            single = info.elements <= CHUNK
            parts = map(decoded, chunks) if single else _in_order(pool, decoded, chunks, self.threads + 1)
            for start, end, part in parts:
                bits[start:end] = part
                digest.update(bits[start:end].data)
            if digest.hexdigest() != tensor.sha256:
                raise Fault(f"the checksum of {shown(name)} does not match")
        if self.base is not None:
            self.base.forget()
        return Numbers(info.dtype, info.shape, bits)

    def _decoder(self, tensor: PackedTensor, file: BinaryIO) -> Callable[[list[bytes], int, int], Bits]:
        """Return the function that decodes the planes of the numbers from a start to an end."""
        info = tensor.info
        if tensor.coding == PLANES:
            return lambda planes, start, end: decode(planes, end - start)
        if tensor.coding == DIFFERENCE:
            known = _known(self.base, tensor.name, info.dtype, info.shape)
            if known is None:
                raise CheckpointError(
                    f"{shown(tensor.name)} is a difference to a tensor that the base model does not have",
                    where=self.path,
                    fix="Restore the base model that this session started with.",
                )
            base = known
            return lambda planes, start, end: decode(planes, end - start, base[start:end], info.dtype)
        keys = self._sort_keys(tensor, file)
        return lambda planes, start, end: decode(planes, end - start, key=keys(start, end))

    def _sort_keys(self, tensor: PackedTensor, file: BinaryIO) -> Callable[[int, int], np.ndarray]:
        """Return the function that computes the sort keys of a moment, from tensors of the same weight."""
        weight, _, last = tensor.name.rpartition("/")

        def sibling(other: str) -> tuple[str, int]:
            entry = self._entries.get(f"{weight}/{other}")
            # Only the second moment may itself be sorted: no tensor can then need itself.
            if entry is None or entry.coding not in (PLANES, *([SECOND_MOMENT] if other == SECOND else [])):
                return "", 0
            return entry.info.dtype, entry.info.elements

        def values(other: str) -> np.ndarray:
            numbers = self.numbers(f"{weight}/{other}")
            if other == SECOND:
                self._ahead.clear()
                self._ahead[f"{weight}/{other}"] = numbers
            return numbers.values

        if not can_sort(last, tensor.info.elements, sibling):
            raise Fault(f"{shown(tensor.name)} was sorted by tensors that are missing")
        lines = np.empty(0, "<i2")
        if tensor.coding == SECOND_MOMENT:
            block = _block(file, tensor, *tensor.blocks[0])
            lines = decode([block], lines_length(tensor.info.shape)).view("<i2")
        return sort_keys(last, tensor.info.shape, lines, values)


def write_packed(
    path: Path,
    tensors: Iterable[tuple[str, Numbers]],
    *,
    base: Base | None = None,
    origin: Origin | None = None,
    threads: int = 1,
    pace: Pace | None = None,
) -> Written:
    """Write a compressed file, with differences to the base for tensors that it has in the same shape.

    Args:
        path: created or replaced.
        tensors: names and tensors of any type and shape, encoded one after the other.
        base: reading will need the same base again, to the byte.
        origin: the file that contains these tensors, stored in the index.
        threads: number of threads that encode; the file does not depend on it.
        pace: see `Sink`.

    Memory: the current tensor, that of the base, and about 100 MB per thread.

    Returns:
        The hashes of what was written, to verify the file against.

    Raises:
        CheckpointError: a tensor has the name of another, or is larger than the format allows.
        StorageError: the disk is full, read-only, failing or gone.
    """
    entries: dict[str, PackedTensor] = {}
    with explained(path), Sink(path, pace) as sink, ThreadPoolExecutor(threads) as pool:
        sink.write(MAGIC)
        for name, tensor in tensors:
            if name in entries or tensor.bits.nbytes > MOST_BYTES:
                raise CheckpointError(
                    f"the tensor {name} {'exists twice' if name in entries else 'is too large to be compressed'}",
                    where=path,
                    fix="This is a bug in the training code; please report it.",
                )
            entries[name] = _write(sink, name, tensor, base, pool, threads + 1)
            if base is not None:
                base.forget()
        sink.write(index_text(list(entries.values()), base.sha256 if base else None, origin))
        return sink.finish()


def _write(
    sink: Sink, name: str, tensor: Numbers, base: Base | None, pool: ThreadPoolExecutor, ahead: int
) -> PackedTensor:
    start, bits, digest, blocks = sink.position, tensor.bits, hashlib.sha256(), []
    known = _known(base, name, tensor.dtype, tensor.shape)

    def encoded(at: int) -> list[bytes]:
        chunk = slice(at, at + CHUNK)
        return encode(bits[chunk]) if known is None else encode(bits[chunk], known[chunk], tensor.dtype)

    places = range(0, len(bits), CHUNK)
    # A thread gains nothing for a single chunk.
    coded = _in_order(pool, encoded, places, ahead) if len(places) > 1 else map(encoded, places)
    for at, planes in zip(places, coded, strict=True):
        digest.update(bits[at : at + CHUNK].data)
        for plane in planes:
            sink.write(plane, name)
            blocks.append((len(plane), zlib.crc32(plane)))
    info = TensorInfo(tensor.dtype, tensor.shape, contiguous(tensor.shape), start)
    return PackedTensor(name, info, PLANES if known is None else DIFFERENCE, digest.hexdigest(), tuple(blocks))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], given: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """Yield the results of `work` in order, computed in `pool` with `ahead` of them in memory at a time."""
    waiting: deque[Future[Made]] = deque()
    for argument in given:
        waiting.append(pool.submit(work, argument))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _block(file: BinaryIO, tensor: PackedTensor, length: int, crc: int) -> bytes:
    """Read the next block.

    Raises:
        Fault: it is truncated or damaged.
    """
    block = file.read(length)
    if len(block) != length or zlib.crc32(block) != crc:
        raise Fault(f"the checksum of {shown(tensor.name)} does not match")
    return block


@contextmanager
def _faults_explained(path: Path) -> Iterator[None]:
    """Raise faults of a compressed file as errors for its user."""
    try:
        with explained(path):
            yield
    except Fault as fault:
        raise CheckpointError(f"cannot be used: {fault}", subject=path, fix=OLDER) from fault
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError("the file does not exist", where=path, fix=OLDER) from error
