"""What a packed file says of its tensors, and how that is checked before any of it is believed.

Format 1: MAGIC; blocks; the index, a JSON object; its length, 8 bytes little-endian; its SHA-256, 32 bytes; MAGIC.

The index: `format`; `chunk`, how many numbers are coded together; `base`, the SHA-256 in hex of the file that
differences are to, or null; `tensors`, a list in the order of their blocks. A tensor: `name`; `dtype` by torch's name;
`shape`; `coding`, "planes" or "difference"; `sha256`, in hex, of its numbers in C order, little-endian; `blocks`, the
length and the CRC-32 of each in turn. Blocks are planes, lowest byte first, chunk after chunk, tensor after tensor,
without gaps: nothing else says where they lie. A plane shorter than its chunk is a Zstandard frame. Planes, differences
and the key they are sorted by are told in `planes`; a base of another type is brought to the tensor's first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.models.files.planes import CHUNK, EXPONENTS
from fastdb.models.files.safetensors_header import LARGEST, parsed
from fastdb.models.files.tensors import (
    MOST_TENSORS,
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

PLANES, DIFFERENCE = "planes", "difference"

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
        width = SIZES[self.info.dtype]
        for number, start in enumerate(range(0, self.info.elements, CHUNK)):
            blocks = self.blocks[number * width : (number + 1) * width]
            yield start, min(start + CHUNK, self.info.elements), blocks


def index_text(tensors: Sequence[PackedTensor], base: str | None) -> bytes:
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
    index = {"format": FORMAT, "chunk": CHUNK, "base": base, "tensors": entries}
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    return text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC


def read_index(file: BinaryIO, length: int) -> tuple[dict[str, PackedTensor], str | None]:
    """The tensors of a packed file of `length` bytes by name, in its order, and the SHA-256 of its base.

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
    if size > LARGEST:
        raise Fault(f"its index would have {size} bytes, more than any model's")
    file.seek(length - TAIL - size)
    text = file.read(size)
    if hashlib.sha256(text).digest() != tail[8:40]:
        raise Fault("its index has changed since it was written")
    index = parsed(text)
    if index.get("format") != FORMAT or index.get("chunk") != CHUNK:
        raise Fault(f"it has format {shown(str(index.get('format')))}, and this version knows {FORMAT}")
    base, entries = index.get("base"), index.get("tensors")
    if base is not None and not _is_hash(base):
        raise Fault("its index does not say what base it differs from")
    if not isinstance(entries, list) or len(entries) > MOST_TENSORS:
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
    return found, base


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
    if coding not in (PLANES, DIFFERENCE) or (coding == DIFFERENCE and not (based and dtype in EXPONENTS)):
        raise Fault(f"{shown(name)} is coded in an unknown way")
    if not _is_hash(entry.get("sha256")):
        raise Fault(f"{shown(name)} has no hash")
    blocks = _blocks(entry.get("blocks"), info)
    return PackedTensor(name, info, coding, entry["sha256"], blocks)


def _blocks(values: Any, info: TensorInfo) -> tuple[tuple[int, int], ...]:
    width = SIZES[info.dtype]
    count = -(-info.elements // CHUNK) * width
    if not isinstance(values, list) or len(values) != 2 * count or not all(map(is_count, values)):
        raise Fault("a tensor in it does not list its blocks")
    blocks = tuple(zip(values[::2], values[1::2], strict=True))
    for number, (length, crc) in enumerate(blocks):
        whole = min(CHUNK, info.elements - number // width * CHUNK)
        if not 0 < length <= whole or crc >= 1 << 32:
            raise Fault("a block in it has an impossible length")
    return blocks
