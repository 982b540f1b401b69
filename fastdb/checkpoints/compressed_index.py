"""What a packed file says of its tensors, and how that is checked before any of it is believed.

Format 1: MAGIC; blocks; the index, a JSON object; its length, 8 bytes little-endian; its SHA-256, 32 bytes; MAGIC.

The index: `format`; `chunk`, how many numbers are coded together; `base`, the SHA-256 in hex of the file that
differences are to, or null; `origin`, what is known of the safetensors file that was packed, its `bytes`, its `sha256`
in hex and the `metadata` of its header, or null; `tensors`, a list in the order of their blocks. A tensor: `name`;
`dtype` by torch's name; `shape`; `coding`, "planes", "difference", "first moment" or "second moment"; `sha256`, in hex,
of its numbers in C order, little-endian; `blocks`, the length and the CRC-32 of each in turn. Blocks are planes, lowest
byte first, chunk after chunk, tensor after tensor, without gaps: nothing else says where they lie; before those of a
second moment comes one with its lines. A block shorter than what it holds is a Zstandard frame. Planes, differences and
the key they are sorted by are told in `planes`, those of moments in `moments`; a base of another type is brought to the
tensor's first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.checkpoints import adam_moments as moments
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

PLANES, DIFFERENCE, FIRST, SECOND = "planes", "difference", "first moment", "second moment"
MOMENTS = {moments.FIRST: FIRST, moments.SECOND: SECOND}
"""How moments are coded, by the last part of their names."""

MOST_BYTES = 8 << 30
"""Of one tensor: a few kilobytes can stand for any number of zeros, and no model has a tensor as large as this."""

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor of a packed file; `info.start` is where its first block lies."""

    name: str
    info: TensorInfo
    coding: str
    sha256: str
    blocks: tuple[tuple[int, int], ...]
    """Length and CRC-32 of each."""

    def chunks(self) -> Iterator[tuple[int, int, Sequence[tuple[int, int]]]]:
        """Of each chunk where its numbers begin and end, and its blocks."""
        width, before = SIZES[self.info.dtype], int(self.coding == SECOND)
        for number, start in enumerate(range(0, self.info.elements, CHUNK)):
            blocks = self.blocks[before + number * width :][:width]
            yield start, min(start + CHUNK, self.info.elements), blocks


@dataclass(frozen=True, slots=True)
class Origin:
    """The safetensors file that was packed: its length, its SHA-256 in hex, and the metadata in its header."""

    bytes: int
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """What a packed file says of itself, checked."""

    tensors: Mapping[str, PackedTensor]
    """By name, in the file's order."""
    base: str | None
    """The SHA-256, in hex, of the file that differences are to."""
    origin: Origin | None


def index_text(tensors: Sequence[PackedTensor], base: str | None, origin: Origin | None) -> bytes:
    """The index and the tail behind it, as they end a file."""
    entries = [
        {
            "name": one.name,
            "dtype": one.info.dtype,
            "shape": one.info.shape,
            "coding": one.coding,
            "sha256": one.sha256,
            "blocks": [number for block in one.blocks for number in block],
        }
        for one in tensors
    ]
    told = {"bytes": origin.bytes, "sha256": origin.sha256, "metadata": dict(origin.metadata)} if origin else None
    index = {"format": FORMAT, "chunk": CHUNK, "base": base, "origin": told, "tensors": entries}
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    return text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC


def read_index(file: BinaryIO, length: int) -> Index:
    """What a packed file of `length` bytes says of itself.

    Raises:
        Fault: it is cut short, damaged or of another format, or its blocks do not fill the file exactly.
    """
    if length < len(MAGIC) + TAIL or file.read(len(MAGIC)) != MAGIC:
        raise Fault("it is cut short, or no packed file")
    file.seek(length - TAIL)
    tail = file.read(TAIL)
    size = int.from_bytes(tail[:8], "little")
    if tail[40:] != MAGIC or size > length - TAIL - len(MAGIC):
        raise Fault("it is cut short or damaged: its end is not that of a packed file")
    if size > MAX_HEADER_BYTES:
        raise Fault(f"its index would have {size} bytes, more than any model's")
    file.seek(length - TAIL - size)
    text = file.read(size)
    if hashlib.sha256(text).digest() != tail[8:40]:
        raise Fault("its index has changed since it was written")
    index = parse_header(text)
    if index.get("format") != FORMAT or index.get("chunk") != CHUNK:
        raise Fault(f"it has format {shown(str(index.get('format')))}, and this version knows {FORMAT}")
    base, entries = index.get("base"), index.get("tensors")
    if base is not None and not _is_hash(base):
        raise Fault("its index does not say what base it differs from")
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise Fault("its index lists no tensors")
    found: dict[str, PackedTensor] = {}
    start = len(MAGIC)
    for entry in entries:
        one = _tensor(entry, start, found, base is not None)
        found[one.name] = one
        start += sum(block for block, _ in one.blocks)
    if start != length - TAIL - size:
        raise Fault(
            f"its blocks have {start - len(MAGIC)} bytes, of which {length - TAIL - size - len(MAGIC)} are there"
        )
    return Index(found, base, _origin(index.get("origin")))


def _origin(value: Any) -> Origin | None:
    if value is None:
        return None
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()):
        length, digest = value.get("bytes"), value.get("sha256")
        if is_count(length) and _is_hash(digest):
            return Origin(length, digest, metadata)
    raise Fault("its index does not say what file was packed")


def lines_length(shape: tuple[int, ...]) -> int:
    """Bytes of the lines of a second moment; 0 where it cannot be coded by them."""
    columns = moments.columns_of(shape)
    return 2 * (shape[0] + columns) if columns else 0


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_HEX.fullmatch(value))


def _tensor(entry: Any, start: int, before: dict[str, PackedTensor], based: bool) -> PackedTensor:
    """The tensor of an entry, checked; its blocks begin at `start`, `before` are those of the entries before it."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name in before:
        raise Fault("its index has an entry without a name of its own")
    dtype, coding = entry.get("dtype"), entry.get("coding")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise Fault(f"{shown(name)} has the unknown type {shown(str(dtype))}")
    shape = checked_shape(entry.get("shape"))
    info = TensorInfo(dtype, shape, contiguous(shape), start)
    if info.nbytes > MOST_BYTES:
        raise Fault(f"{shown(name)} would have {info.nbytes} bytes, more than any model's")
    possible = {
        PLANES: True,
        DIFFERENCE: based and dtype in EXPONENTS,
        MOMENTS.get(name.rpartition("/")[2]): dtype == "uint8",
    }
    if not isinstance(coding, str) or not possible.get(coding):
        raise Fault(f"{shown(name)} is coded in an unknown way")
    if not _is_hash(entry.get("sha256")):
        raise Fault(f"{shown(name)} has no hash")
    blocks = _blocks(entry.get("blocks"), info, coding)
    return PackedTensor(name, info, coding, entry["sha256"], blocks)


def _blocks(values: Any, info: TensorInfo, coding: str) -> tuple[tuple[int, int], ...]:
    width = SIZES[info.dtype]
    lengths = [min(CHUNK, info.elements - start) for start in range(0, info.elements, CHUNK) for _ in range(width)]
    if coding == SECOND:
        lengths.insert(0, lines_length(info.shape))
    if not isinstance(values, list) or len(values) != 2 * len(lengths) or not all(map(is_count, values)):
        raise Fault("a tensor in it does not list its blocks")
    blocks = tuple(zip(values[::2], values[1::2], strict=True))
    for (length, crc), whole in zip(blocks, lengths, strict=True):
        if not 0 < length <= whole or crc >= 1 << 32:
            raise Fault("a block in it has an impossible length")
    return blocks
