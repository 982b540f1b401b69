"""Index of a compressed tensor file, and its validation.

Format 1: MAGIC; blocks; the index, a JSON object; its length, 8 bytes little-endian; its SHA-256, 32 bytes; MAGIC. The
index is at the end because compressed sizes are known only after writing: files are written in one pass, in bounded
memory.

Keys of the index: `format`; `chunk`, the count of numbers that are coded together; `base`, the SHA-256 in hex of the
file to which differences refer, or null; `origin`, of the safetensors file that was compressed, its `bytes`, its
`sha256` in hex and the `metadata` of its header, or null; `tensors`, a list in the order of their blocks. A tensor has:
`name`; `dtype` by torch's name; `shape`; `coding`, "planes", "difference", "first moment" or "second moment";
`sha256`, in hex, of its numbers in C order, little-endian; `blocks`, the length and the CRC-32 of each in turn.

Blocks are planes, lowest byte first, chunk after chunk, tensor after tensor, without gaps, which defines their
positions. A block that is shorter than its content is a Zstandard frame. `byte_planes` describes planes and
differences; a base of another type is first converted to the tensor's. Moments are read only, see `adam_moments`; a
second moment has one more block before its planes, with its lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.checkpoints.adam_moments import FIRST, SECOND, lines_length
from fastdb.checkpoints.byte_planes import CHUNK, EXPONENTS
from fastdb.formats.safetensors_file import MAX_HEADER_BYTES, parse_header
from fastdb.formats.tensor_info import (
    MAX_TENSORS,
    SIZES,
    Fault,
    TensorInfo,
    checked_shape,
    contiguous,
    is_count,
    shown,
)

MAGIC = b"fdbpack\n"
FORMAT = 1
TAIL = 8 + 32 + len(MAGIC)

PLANES, DIFFERENCE, FIRST_MOMENT, SECOND_MOMENT = "planes", "difference", "first moment", "second moment"
MOMENTS = {FIRST: FIRST_MOMENT, SECOND: SECOND_MOMENT}
"""Codings of sorted moments by the last part of their names."""

MOST_BYTES = 8 << 30
"""Limit for one tensor: a few kilobytes can decompress to any number of zeros, and no model has larger tensors."""

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor of a compressed file; `info.start` is the position of its first block."""

    name: str
    info: TensorInfo
    coding: str
    sha256: str
    blocks: tuple[tuple[int, int], ...]
    """Length and CRC-32 of each block."""

    def chunks(self) -> Iterator[tuple[int, int, Sequence[tuple[int, int]]]]:
        """Yield the first number, the end and the blocks of each chunk."""
        width, before = SIZES[self.info.dtype], int(self.coding == SECOND_MOMENT)
        for number, start in enumerate(range(0, self.info.elements, CHUNK)):
            blocks = self.blocks[before + number * width :][:width]
            yield start, min(start + CHUNK, self.info.elements), blocks


@dataclass(frozen=True, slots=True)
class Origin:
    """Length, SHA-256 in hex and header metadata of the safetensors file that was compressed."""

    bytes: int
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """The validated index of a compressed file."""

    tensors: Mapping[str, PackedTensor]
    """By name, in the file's order."""
    base: str | None
    """SHA-256, in hex, of the file to which differences refer."""
    origin: Origin | None


def index_text(tensors: Sequence[PackedTensor], base: str | None, origin: Origin | None) -> bytes:
    """Return the index and the tail that end a file."""
    entries = [
        {
            "name": tensor.name,
            "dtype": tensor.info.dtype,
            "shape": tensor.info.shape,
            "coding": tensor.coding,
            "sha256": tensor.sha256,
            "blocks": [number for block in tensor.blocks for number in block],
        }
        for tensor in tensors
    ]
    source = {"bytes": origin.bytes, "sha256": origin.sha256, "metadata": dict(origin.metadata)} if origin else None
    index = {"format": FORMAT, "chunk": CHUNK, "base": base, "origin": source, "tensors": entries}
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    return text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC


def read_index(file: BinaryIO, length: int) -> Index:
    """Read and validate the index of a compressed file of `length` bytes.

    Raises:
        Fault: the file is truncated, damaged or of another format, or its blocks do not fill it exactly.
    """
    if length < len(MAGIC) + TAIL or file.read(len(MAGIC)) != MAGIC:
        raise Fault("it is truncated or not a compressed tensor file")
    file.seek(length - TAIL)
    tail = file.read(TAIL)
    size = int.from_bytes(tail[:8], "little")
    if tail[40:] != MAGIC or size > length - TAIL - len(MAGIC):
        raise Fault("it is truncated or damaged at its end")
    if size > MAX_HEADER_BYTES:
        raise Fault(f"its index has {size} bytes, more than any model needs")
    file.seek(length - TAIL - size)
    text = file.read(size)
    if hashlib.sha256(text).digest() != tail[8:40]:
        raise Fault("the checksum of its index does not match")
    index = parse_header(text)
    if index.get("format") != FORMAT or index.get("chunk") != CHUNK:
        raise Fault(f"it has format {shown(str(index.get('format')))}; this version reads format {FORMAT}")
    base, entries = index.get("base"), index.get("tensors")
    if base is not None and not _is_hash(base):
        raise Fault("its index has an invalid base")
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise Fault("its index lists no tensors")
    tensors: dict[str, PackedTensor] = {}
    start = len(MAGIC)
    for entry in entries:
        tensor = _tensor(entry, start, tensors, base is not None)
        tensors[tensor.name] = tensor
        start += sum(block for block, _ in tensor.blocks)
    if start != length - TAIL - size:
        raise Fault(f"its blocks have {start - len(MAGIC)} bytes, but the file has {length - TAIL - size - len(MAGIC)}")
    return Index(tensors, base, _origin(index.get("origin")))


def _origin(value: Any) -> Origin | None:
    if value is None:
        return None
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()):
        length, digest = value.get("bytes"), value.get("sha256")
        if is_count(length) and _is_hash(digest):
            return Origin(length, digest, metadata)
    raise Fault("its index has an invalid origin")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_HEX.fullmatch(value))


def _tensor(entry: Any, start: int, before: dict[str, PackedTensor], based: bool) -> PackedTensor:
    """Validate the entry of a tensor whose blocks begin at `start`; `before` are the tensors of earlier entries."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name in before:
        raise Fault("its index has an entry with no name or the name of another")
    dtype, coding = entry.get("dtype"), entry.get("coding")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise Fault(f"{shown(name)} has the unknown type {shown(str(dtype))}")
    shape = checked_shape(entry.get("shape"))
    info = TensorInfo(dtype, shape, contiguous(shape), start)
    if info.nbytes > MOST_BYTES:
        raise Fault(f"{shown(name)} would have {info.nbytes} bytes, more than any model needs")
    possible = {
        PLANES: True,
        DIFFERENCE: based and dtype in EXPONENTS,
        MOMENTS.get(name.rpartition("/")[2]): dtype == "uint8",
    }
    if not isinstance(coding, str) or not possible.get(coding):
        raise Fault(f"{shown(name)} has an unknown coding")
    if not _is_hash(entry.get("sha256")):
        raise Fault(f"{shown(name)} has no hash")
    blocks = _blocks(entry.get("blocks"), info, coding)
    return PackedTensor(name, info, coding, entry["sha256"], blocks)


def _blocks(values: Any, info: TensorInfo, coding: str) -> tuple[tuple[int, int], ...]:
    width = SIZES[info.dtype]
    lengths = [min(CHUNK, info.elements - start) for start in range(0, info.elements, CHUNK) for _ in range(width)]
    if coding == SECOND_MOMENT:
        lengths.insert(0, lines_length(info.shape))
    if not isinstance(values, list) or len(values) != 2 * len(lengths) or not all(map(is_count, values)):
        raise Fault("a tensor has an invalid list of blocks")
    blocks = tuple(zip(values[::2], values[1::2], strict=True))
    for (length, crc), whole in zip(blocks, lengths, strict=True):
        if not 0 < length <= whole or crc >= 1 << 32:
            raise Fault("a block has an impossible length")
    return blocks
