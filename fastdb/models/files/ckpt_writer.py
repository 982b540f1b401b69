"""Write a `.ckpt` that every reader of Stable Diffusion takes: `{"state_dict": {name: tensor}}` as torch.save had it.

The zip holds exactly `archive/data.pkl`, `archive/data/N` and `archive/version`, uncompressed. Newer torch.save adds
entries that the safe readers of well-known programs refuse, hence a writer of our own. The pickle names only
`torch._utils._rebuild_tensor_v2`, the storage classes and `collections.OrderedDict`.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdb.models.files.safetensors_writer import Entry, tensor_bytes
from fastdb.models.files.sink import Sink, Written

ROOT = "archive"
VERSION = b"3\n"
"""Version of the zip format of torch.save since 1.6."""

ALIGNMENT = 64
"""Data begins at a multiple of this, so that torch.load(mmap=True) gives aligned tensors."""

BIG = 1 << 30
"""From this size on a record gets a zip64 header; the limit of the format is 4 GiB, Python's own 2 GiB."""

STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
}


def write_ckpt(path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor]) -> Written:
    """Write `tensors`, which must come in the order of `entries`; one of them is in memory at a time.

    Args:
        path: made or replaced.
        entries: names, types and shapes.
        tensors: exactly as announced by `entries`.

    Returns:
        What was meant to be written: what is read back can be held against it.
    """
    with path.open("wb") as file:
        sink = Sink(file)
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, sink, f"{ROOT}/data.pkl", memoryview(pickled(entries)))
            for number, (entry, tensor) in enumerate(zip(entries, tensors, strict=True)):
                _add(archive, sink, f"{ROOT}/data/{number}", tensor_bytes(entry, tensor), entry.name)
            _add(archive, sink, f"{ROOT}/version", memoryview(VERSION))
    return sink.written


def pickled(entries: Sequence[Entry]) -> bytes:
    """The pickle (protocol 2) of the state dict; the data of entry N is announced as storage N on the CPU."""
    stream = io.BytesIO()
    state = {entry.name: _Tensor(entry, number) for number, entry in enumerate(entries)}
    _Pickler(stream, protocol=2).dump({"state_dict": state})
    return stream.getvalue()


class _Storage:
    """Stands for the bytes in record `number`."""

    def __init__(self, entry: Entry, number: int) -> None:
        self.entry, self.number = entry, number


class _Tensor:
    """Pickles as torch would pickle a contiguous tensor with a storage of its own."""

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
        return "storage", STORAGES[entry.dtype], str(value.number), "cpu", entry.nbytes // entry.dtype.itemsize


def _add(archive: zipfile.ZipFile, sink: Sink, name: str, data: memoryview, tensor: str = "") -> None:
    """Add a record whose data begins at a multiple of `ALIGNMENT`; padding goes into the extra field, as torch does."""
    record = zipfile.ZipInfo(name)  # dated 1980: the same tensors give the same file
    record.create_system = 3
    record.file_size = data.nbytes
    big = data.nbytes >= BIG
    # A local header is 30 bytes, the name and the extra fields; a zip64 field takes 20.
    start = sink.tell() + 30 + len(name) + (20 if big else 0) + 4
    padding = -start % ALIGNMENT
    record.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(record, "w", force_zip64=big) as entry:
        sink.named(tensor)
        entry.write(data)
        sink.named("")
