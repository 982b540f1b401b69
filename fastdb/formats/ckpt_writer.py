"""Write a `.ckpt` that every reader of Stable Diffusion takes: `{"state_dict": {name: tensor}}` as torch.save had it.

The zip holds exactly `archive/data.pkl`, `archive/data/N` and `archive/version`, uncompressed. Newer torch.save adds
entries that the safe readers of well-known programs refuse, hence a writer of our own. The pickle names only
`torch._utils._rebuild_tensor_v2`, the storage classes and `collections.OrderedDict`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdb.formats.hashing_writer import Sink, Written
from fastdb.formats.safetensors_writer import Entry, tensor_bytes
from fastdb.formats.zip_writer import ZipWriter

ROOT = "archive"
VERSION = b"3\n"
"""Version of the zip format of torch.save since 1.6."""

ALIGNMENT = 64
"""Data begins at a multiple of this, so that torch.load(mmap=True) gives aligned tensors."""

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
    with Sink(path) as sink:
        archive = ZipWriter(sink, ALIGNMENT)
        archive.add(f"{ROOT}/data.pkl", pickled(entries))
        for number, (entry, tensor) in enumerate(zip(entries, tensors, strict=True)):
            archive.add(f"{ROOT}/data/{number}", tensor_bytes(entry, tensor), entry.name)
        archive.add(f"{ROOT}/version", VERSION)
        archive.finish()
        return sink.finish()


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
