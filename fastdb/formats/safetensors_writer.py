"""Write a safetensors file tensor by tensor: names and shapes first, then the bytes as they come.

Format: 8 bytes length, a JSON header, the data (github.com/huggingface/safetensors, README).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from fastdb.formats.hashing_writer import Sink, Written
from fastdb.formats.safetensors_header import header
from fastdb.formats.tensor_info import TensorInfo, contiguous


@dataclass(frozen=True)
class Entry:
    """A tensor to come: what a header needs to know before the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def info(self) -> TensorInfo:
        """The same for `header`, without a place."""
        return TensorInfo(str(self.dtype).removeprefix("torch."), self.shape, contiguous(self.shape), 0)


def write_safetensors(
    path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor], metadata: Mapping[str, str]
) -> Written:
    """Write `tensors`, which must come in the order of `entries`; one of them is in memory at a time.

    Args:
        path: made or replaced.
        entries: wider types before narrower ones, so that all data is aligned.
        tensors: exactly as announced by `entries`.
        metadata: text kept in the header.

    Returns:
        What was meant to be written: what is read back can be held against it.
    """
    with Sink(path) as sink:
        sink.write(header({entry.name: entry.info for entry in entries}, metadata))
        for entry, tensor in zip(entries, tensors, strict=True):
            sink.write(tensor_bytes(entry, tensor), entry.name)
        return sink.finish()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors from any device, one after the other through the CPU; returns the SHA-256 of what was meant."""
    named = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]
    return write_safetensors(path, entries, (tensor.detach().cpu() for _, tensor in named), {"format": "pt"}).sha256


def tensor_bytes(entry: Entry, tensor: torch.Tensor) -> memoryview:
    """The data of a tensor in C order, little-endian, checked against its announcement.

    Raises:
        ValueError: another type or shape was announced.
    """
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry.name}: {tensor.dtype} {tuple(tensor.shape)} is not what was announced: {entry}")
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
