"""Writer of `.ckpt` files in the format of torch.save.

The content is `{"state_dict": {name: tensor}}`.

The zip contains exactly `archive/data.pkl`, `archive/data/N` and `archive/version`, uncompressed. Newer versions of
torch.save add entries that the safe loaders of well-known programs reject, hence this writer. The pickle refers only to
`torch._utils._rebuild_tensor_v2`, the storage classes and `collections.OrderedDict`.

Zip format: APPNOTE 6.3 of PKWARE, sections 4.3 and 4.5.3 (zip64). Python's zipfile writes the CRC after the data and
computes it separately from the CRC for reading back.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from fastdb.formats.hashing_writer import Sink, Written
from fastdb.formats.safetensors_file import Entry, tensor_bytes

ROOT = "archive"
VERSION = b"3\n"
"""Version of the zip format of torch.save since 1.6."""

ALIGNMENT = 64
"""Data begins at a multiple of this, so that torch.load(mmap=True) returns aligned tensors."""

STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
}

LIMIT = 0xFFFFFFFF
"""Offsets and sizes from here on need a zip64 field."""
MANY = 0xFFFF
DATE = 1 << 5 | 1
"""1 January 1980, so that the same records give the same file."""
STORED = struct.pack("<HHHHH", 45, 0, 0, 0, DATE)
"""Version 4.5 to extract, no flags, no compression, time, date."""


def write_ckpt(path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor]) -> Written:
    """Write `tensors`, with a single tensor in memory at a time.

    Args:
        path: created or replaced.
        entries: names, types and shapes.
        tensors: as described by `entries`, in the same order.

    Returns:
        Checksums of the written data, for `read_back`.

    Raises:
        ValueError: a tensor differs from its entry, or is 4 GiB or larger.
        OSError: the disk is full, failing or gone.
    """

    def records() -> Iterator[tuple[str, bytes | memoryview, str]]:
        yield f"{ROOT}/data.pkl", _pickled(entries), ""
        for number, (entry, tensor) in enumerate(zip(entries, tensors, strict=True)):
            yield f"{ROOT}/data/{number}", tensor_bytes(entry, tensor), entry.name
        yield f"{ROOT}/version", VERSION, ""

    with Sink(path) as sink:
        write_zip(sink, records(), ALIGNMENT)
        return sink.finish()


def write_zip(sink: Sink, records: Iterable[tuple[str, bytes | memoryview, str]], alignment: int) -> None:
    """Write a zip of uncompressed records.

    Args:
        sink: the file.
        records: ASCII name, data of less than 4 GiB, and the name of the tensor in the data or "".
        alignment: data begins at a multiple of this.

    Raises:
        ValueError: a record is too large.
    """
    directory: list[tuple[bytes, int, int, int]] = []
    for name, data, tensor in records:
        with memoryview(data) as view:
            size, path, start = view.nbytes, name.encode("ascii"), sink.position
            if size >= LIMIT:
                raise ValueError(f"{name}: {size} bytes exceed the size limit of a record")
            crc = zlib.crc32(view)
            # The local header is 30 bytes, the name, and the padding as an extra field, as torch writes it.
            padding = -(start + 34 + len(path)) % alignment
            extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            sizes = struct.pack("<IIIHH", crc, size, size, len(path), len(extra))
            sink.write(b"PK\3\4" + STORED + sizes + path + extra)
            sink.write(view, tensor, crc)
            directory.append((path, crc, size, start))
    _write_directory(sink, directory)


def _write_directory(sink: Sink, directory: list[tuple[bytes, int, int, int]]) -> None:
    start, count = sink.position, len(directory)
    for path, crc, size, place in directory:
        zip64 = struct.pack("<HHQ", 1, 8, place) if place >= LIMIT else b""
        sizes = struct.pack("<IIIHH", crc, size, size, len(path), len(zip64))
        tail = struct.pack("<HHHII", 0, 0, 0, 0, min(place, LIMIT))
        sink.write(b"PK\1\2" + struct.pack("<H", 3 << 8 | 45) + STORED + sizes + tail + path + zip64)
    end = sink.position
    if start >= LIMIT or count >= MANY:
        sink.write(b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 3 << 8 | 45, 45, 0, 0, count, count, end - start, start))
        sink.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
    short = min(count, MANY)
    sink.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, short, short, min(end - start, LIMIT), min(start, LIMIT), 0))


def _pickled(entries: Sequence[Entry]) -> bytes:
    """Return the pickle (protocol 2) of the state dict.

    The data of entry N is storage N on the CPU.
    """
    stream = io.BytesIO()
    state = {entry.name: _Tensor(entry, number) for number, entry in enumerate(entries)}
    _Pickler(stream, protocol=2).dump({"state_dict": state})
    return stream.getvalue()


class _Storage:
    """Placeholder for the data in record `number`."""

    def __init__(self, entry: Entry, number: int) -> None:
        self.entry, self.number = entry, number


class _Tensor:
    """Placeholder that pickles like a contiguous tensor with its own storage."""

    def __init__(self, entry: Entry, number: int) -> None:
        self.entry, self.number = entry, number

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.entry.shape
        strides = torch.empty(shape, device="meta").stride()
        hooks: OrderedDict[str, object] = OrderedDict()
        storage = _Storage(self.entry, self.number)
        return torch._utils._rebuild_tensor_v2, (storage, 0, shape, strides, False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, _Storage):
            return None
        entry = value.entry
        return "storage", STORAGES[entry.dtype], str(value.number), "cpu", prod(entry.shape)
