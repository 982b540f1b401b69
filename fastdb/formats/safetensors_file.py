"""Safetensors files, read with strict checks and written tensor by tensor.

Format: 8 bytes header length, a JSON header, the data (github.com/huggingface/safetensors, README). Reading is stricter
than the library: a duplicate name is rejected. Only the header is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastdb.formats.hashing_writer import Sink, Written
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

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 << 20
"""Headers of the largest models have less than one million bytes."""

MAX_HEADER_SIGNS = 2_000_000
"""Limit for brackets and quotes in a header, each of which costs an object's memory."""

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

WRITTEN = {TYPES[code]: code for code in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")}
"""Codes of the types that can be written, by torch's name."""


def read_header(file: BinaryIO, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return tensors and metadata of a safetensors file of `length` bytes.

    Raises:
        Fault: the file is truncated or damaged, or its tensors do not fill it exactly.
    """
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if length < 8 or size > length - 8:
        raise Fault(f"truncated, or not a safetensors file: header of {size} bytes in a file of {length} bytes")
    if size > MAX_HEADER_BYTES:
        raise Fault(f"the header of {size} bytes exceeds the limit of {MAX_HEADER_BYTES} bytes")
    header = parse_header(file.read(size))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Fault("the metadata is not a mapping of strings")
    if len(header) > MAX_TENSORS:
        raise Fault("too many tensors")
    extents: list[tuple[int, int, str]] = []
    tensors = {name: _tensor(name, entry, 8 + size, extents) for name, entry in header.items()}
    _check_filled(sorted(extents), length - 8 - size)
    return tensors, metadata


def build_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return everything before the data of a safetensors file.

    Types must be in `WRITTEN`; strides and positions are ignored.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.nbytes
        header[name] = {"dtype": WRITTEN[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parse_header(data: bytes) -> dict[str, Any]:
    """Parse a JSON object without duplicate names.

    Raises:
        Fault: the data is not such an object, or has too many values.
    """
    if sum(data.count(sign) for sign in (b"{", b"[", b'"')) > MAX_HEADER_SIGNS:
        raise Fault("the header has too many values")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the header is not valid JSON ({shown(str(error))})") from error
    if not isinstance(header, dict):
        raise Fault("the header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Fault(f"duplicate name {shown(duplicate)} in the header")
    return values


def _reject_constant(name: str) -> None:
    raise Fault(f"invalid number {name} in the header")


def _tensor(name: str, entry: Any, data: int, extents: list[tuple[int, int, str]]) -> TensorInfo:
    """Validate a header entry and append its extent.

    `data` is the position of the data in the file.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise Fault(f"header entry {shown(name)} is not a tensor")
    dtype = TYPES.get(entry["dtype"])
    if dtype is None:
        raise Fault(f"{shown(name)} has the unsupported type {shown(entry['dtype'])}")
    shape, offsets = checked_shape(entry.get("shape")), entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise Fault(f"{shown(name)} has invalid data offsets")
    info = TensorInfo(dtype, shape, contiguous(shape), data + offsets[0])
    size = offsets[1] - offsets[0]
    if size != info.nbytes:
        raise Fault(f"{shown(name)} has {size} bytes of data for shape {shown(shape)} of {SIZES[dtype]}-byte elements")
    extents.append((offsets[0], offsets[1], name))
    return info


def _check_filled(extents: list[tuple[int, int, str]], length: int) -> None:
    """Raise `Fault` unless tensors fill the data without gaps or overlaps."""
    end = 0
    for start, stop, name in extents:
        if start < end:
            raise Fault(f"the data of {shown(name)} overlaps another tensor")
        if start > end:
            raise Fault(f"gap before the data of {shown(name)}")
        end = stop
    if end > length:
        raise Fault(f"truncated: the tensors need {end} bytes, but the file has {length} bytes of data")
    if end < length:
        raise Fault(f"{length - end} bytes of trailing data after the last tensor")


@dataclass(frozen=True)
class Entry:
    """Name, type and shape of a tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def write_safetensors(
    path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor], metadata: Mapping[str, str]
) -> Written:
    """Write `tensors`, with a single tensor in memory at a time.

    Args:
        path: created or replaced.
        entries: wider types before narrower types, so that all data is aligned.
        tensors: as described by `entries`, in the same order.
        metadata: text stored in the header.

    Returns:
        Checksums of the written data, for `read_back`.

    Raises:
        ValueError: a tensor differs from its entry.
        OSError: the disk is full, failing or gone.
    """
    infos = {
        entry.name: TensorInfo(str(entry.dtype).removeprefix("torch."), entry.shape, contiguous(entry.shape), 0)
        for entry in entries
    }
    with Sink(path) as sink:
        sink.write(build_header(infos, metadata))
        for entry, tensor in zip(entries, tensors, strict=True):
            sink.write(tensor_bytes(entry, tensor), entry.name)
        return sink.finish()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors from any device and return the file's SHA-256."""
    named = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]
    return write_safetensors(path, entries, (tensor.detach().cpu() for _, tensor in named), {"format": "pt"}).sha256


def tensor_bytes(entry: Entry, tensor: torch.Tensor) -> memoryview:
    """Return the data of a tensor in C order, little-endian.

    Raises:
        ValueError: the tensor differs from its entry.
    """
    import torch

    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry.name}: {tensor.dtype} {tuple(tensor.shape)} does not match {entry}")
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
