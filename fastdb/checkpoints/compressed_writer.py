"""Write tensors into a packed file, one after the other, in bounded memory."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fastdb.checkpoints import adam_moments as moments
from fastdb.checkpoints.byte_planes import CHUNK, EXPONENTS, difference, encode, exponents, pressed
from fastdb.checkpoints.compressed_index import (
    DIFFERENCE,
    MAGIC,
    MOMENTS,
    MOST_BYTES,
    PLANES,
    Origin,
    PackedTensor,
    index_text,
)
from fastdb.checkpoints.compressed_reader import Base, in_turn
from fastdb.errors import CheckpointError
from fastdb.formats.hashing_writer import Pace, Sink, Written
from fastdb.formats.tensor_bits import Bits, Numbers
from fastdb.formats.tensor_info import TensorInfo, contiguous
from fastdb.storage.atomic_write import explained

Content: TypeAlias = Numbers | Callable[[], Numbers]
"""A tensor, or what makes it when its turn comes."""


def write_packed(
    path: Path,
    tensors: Mapping[str, Content] | Iterable[tuple[str, Content]],
    *,
    base: Base | None = None,
    beside: Mapping[str, Content] | None = None,
    origin: Origin | None = None,
    threads: int = 1,
    pace: Pace | None = None,
) -> Written:
    """Write `tensors` to `path`; those of a floating type that `base` has in the same shape as differences to it.

    Args:
        path: made or replaced.
        tensors: by name, of any type and shape, or what makes one when its turn comes.
        base: what reading will need again, to the byte.
        beside: all tensors by name, where `tensors` gives them one by one: moments in 8 bit are coded by others.
        origin: the file these tensors are of, kept in the index.
        threads: that code at the same time; the file is the same for any number.
        pace: see `Sink`.

    Memory: the tensor at hand, that of the base, and about 100 MB for each thread.

    Returns:
        What was meant to be written: what is read back can be held against it.

    Raises:
        CheckpointError: a tensor comes twice, or is larger than the format allows.
        StorageError: the disk is full, read-only, failing or gone.
    """
    named = tensors.items() if isinstance(tensors, Mapping) else tensors
    others = beside if beside is not None else tensors if isinstance(tensors, Mapping) else {}
    found: dict[str, PackedTensor] = {}
    with explained(path), Sink(path, pace) as sink, ThreadPoolExecutor(threads) as pool:
        sink.write(MAGIC)
        for name, content in named:
            tensor = _numbers(content)
            if name in found or tensor.bits.nbytes > MOST_BYTES:
                raise CheckpointError(
                    f"the tensor {name} {'comes twice' if name in found else 'is too large to be packed'}",
                    where=path,
                    fix="This is a mistake in what was to be saved; please report it.",
                )
            way = _way(name, tensor, base, others)
            found[name] = _write(sink, name, tensor, way, pool, threads + 1)
            if base is not None:
                base.forget()
        sink.write(index_text(list(found.values()), base.sha256 if base else None, origin))
        return sink.finish()


@dataclass(frozen=True)
class _Way:
    """How a tensor is coded: what becomes of the numbers from one to another, and what comes before them."""

    coding: str
    planes: Callable[[Bits, int, int], list[bytes]]
    before: bytes | None = None


def _numbers(content: Content) -> Numbers:
    return content if isinstance(content, Numbers) else content()


def _way(name: str, tensor: Numbers, base: Base | None, others: Mapping[str, Content]) -> _Way:
    dtype, shape = tensor.dtype, tensor.shape
    known = base.like(name, dtype, shape) if base is not None and dtype in EXPONENTS else None
    if known is not None:

        def moved(bits: Bits, start: int, end: int) -> list[bytes]:
            beside = known[start:end]
            return encode(difference(bits[start:end], beside), exponents(beside, dtype))

        return _Way(DIFFERENCE, moved)
    return _way_of_moment(name, dtype, shape, others) or _Way(PLANES, lambda bits, start, end: encode(bits[start:end]))


def _way_of_moment(name: str, dtype: str, shape: tuple[int, ...], others: Mapping[str, Content]) -> _Way | None:
    of, _, last = name.rpartition("/")

    def told(one: str) -> tuple[str, int]:
        tensor = _numbers(others[f"{of}/{one}"]) if f"{of}/{one}" in others else None
        return ("", 0) if tensor is None else (tensor.dtype, len(tensor.bits))

    columns, count = moments.columns_of(shape), math.prod(shape)
    if (
        last not in MOMENTS
        or dtype != "uint8"
        or not moments.fits(last, count, told)
        or not (columns or last == moments.FIRST)
    ):
        return None
    beside, lines = (lambda one: _numbers(others[f"{of}/{one}"]).values), None
    if last == moments.SECOND:
        lines = moments.lines_of(columns, beside)
    expected = moments.of_first(beside) if lines is None else moments.of_second(lines, columns, beside)

    def ordered(bits: Bits, start: int, end: int) -> list[bytes]:
        return encode(bits[start:end], expected.key(start, end))

    return _Way(MOMENTS[last], ordered, None if lines is None else pressed(lines.tobytes()))


def _write(sink: Sink, name: str, tensor: Numbers, way: _Way, pool: ThreadPoolExecutor, ahead: int) -> PackedTensor:
    start, bits, digest, blocks = sink.position, tensor.bits, hashlib.sha256(), []

    def put(block: bytes) -> None:
        sink.write(block, name)
        blocks.append((len(block), zlib.crc32(block)))

    if way.before is not None:
        put(way.before)
    places = range(0, len(bits), CHUNK)

    def code(at: int) -> list[bytes]:
        return way.planes(bits, at, min(at + CHUNK, len(bits)))

    # A thread for one chunk alone would only be waited for.
    coded = in_turn(pool, code, places, ahead) if len(places) > 1 else map(code, places)
    for at, planes in zip(places, coded, strict=True):
        digest.update(bits[at : at + CHUNK].data)
        for plane in planes:
            put(plane)
    info = TensorInfo(tensor.dtype, tensor.shape, contiguous(tensor.shape), start)
    return PackedTensor(name, info, way.coding, digest.hexdigest(), tuple(blocks))
