"""Write tensors into a packed file, one after the other, in bounded memory."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import torch

from fastdb.errors import CheckpointError
from fastdb.models.files.packed import Base, bits_of, in_turn
from fastdb.models.files.packed_index import DIFFERENCE, MAGIC, MOST_BYTES, PLANES, PackedTensor, index_text
from fastdb.models.files.planes import CHUNK, EXPONENTS, difference, encode, exponents
from fastdb.models.files.sink import Sink, Written
from fastdb.models.files.tensors import TensorInfo, contiguous
from fastdb.storage.durable import explained

Content: TypeAlias = "torch.Tensor | Callable[[], torch.Tensor]"
"""A tensor, or what makes it when its turn comes."""


def write_packed(
    path: Path,
    tensors: Mapping[str, Content] | Iterable[tuple[str, Content]],
    *,
    base: Base | None = None,
    threads: int = 1,
) -> Written:
    """Write `tensors` to `path`; those of a floating type that `base` has in the same shape as differences to it.

    Args:
        path: made or replaced.
        tensors: by name, from any device, of any type and shape, or what makes one when its turn comes.
        base: what reading will need again, to the byte.
        threads: that code at the same time; the file is the same for any number.

    Memory: the tensor at hand, that of the base, and about 100 MB for each thread.

    Returns:
        What was meant to be written: what is read back can be held against it.

    Raises:
        CheckpointError: a tensor comes twice, or is larger than the format allows.
        StorageError: the disk is full, read-only, failing or gone.
    """
    named = tensors.items() if isinstance(tensors, Mapping) else tensors
    found: dict[str, PackedTensor] = {}
    with explained(path), Sink(path) as sink, ThreadPoolExecutor(threads) as pool:
        sink.write(MAGIC)
        for name, content in named:
            tensor = (content if isinstance(content, torch.Tensor) else content()).detach().cpu()
            if name in found or tensor.nbytes > MOST_BYTES:
                raise CheckpointError(
                    f"the tensor {name} {'comes twice' if name in found else 'is too large to be packed'}",
                    where=path,
                    fix="This is a mistake in what was to be saved; please report it.",
                )
            found[name] = _write(sink, name, tensor, base, pool, threads + 1)
        sink.write(index_text(list(found.values()), base.sha256 if base else None))
        return sink.finish()


def _write(
    sink: Sink, name: str, tensor: torch.Tensor, base: Base | None, pool: ThreadPoolExecutor, ahead: int
) -> PackedTensor:
    dtype, shape, start = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), sink.tell()
    bits, digest, blocks = bits_of(tensor), hashlib.sha256(), []
    known = base.like(name, tensor.dtype, shape) if base is not None and dtype in EXPONENTS else None

    def coded(at: int) -> list[bytes]:
        part = bits[at : at + CHUNK]
        if known is None:
            return encode(part)
        beside = known[at : at + CHUNK]
        return encode(difference(part, beside), exponents(beside, dtype))

    places = range(0, len(bits), CHUNK)
    for at, planes in zip(places, in_turn(pool, coded, places, ahead), strict=True):
        digest.update(bits[at : at + CHUNK].data)
        for plane in planes:
            sink.write(plane, name)
            blocks.append((len(plane), zlib.crc32(plane)))
    if base is not None:
        base.forget()
    info = TensorInfo(dtype, shape, contiguous(shape), start)
    return PackedTensor(name, info, PLANES if known is None else DIFFERENCE, digest.hexdigest(), tuple(blocks))
