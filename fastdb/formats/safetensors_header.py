"""The header of a safetensors file, read and written by us: 8 bytes length, a JSON object, the data.

Format: github.com/huggingface/safetensors, README. Stricter than the library where that lets things pass: a name given
twice is refused. Nothing is read beyond the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from fastdb.formats.tensor_info import (
    MOST_TENSORS,
    SIZES,
    Fault,
    TensorInfo,
    checked_shape,
    contiguous,
    is_count,
    shown,
)

LARGEST = 16 << 20
"""Bytes of a header; those of the largest models have less than one million."""

MOST_SIGNS = 2_000_000
"""Brackets and quotes in a header: what makes objects of it, and so memory."""

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

WRITTEN = {TYPES[sign]: sign for sign in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")}
"""The signs of the types that our writer knows, by torch's names."""


def read_header(file: BinaryIO, length: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors file of `length` bytes.

    Raises:
        Fault: it is cut short, damaged, or its tensors do not fill the file exactly.
    """
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if length < 8 or size > length - 8:
        raise Fault(f"it is cut short or no safetensors: its header would have {size} bytes, the file has {length}")
    if size > LARGEST:
        raise Fault(f"its header would have {size} bytes, more than any model's")
    header = parsed(file.read(size))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Fault("its metadata is not a list of names and texts")
    if len(header) > MOST_TENSORS:
        raise Fault("it names more tensors than any model has")
    ends: list[tuple[int, int, str]] = []
    tensors = {name: _tensor(name, entry, 8 + size, ends) for name, entry in header.items()}
    _check_filled(sorted(ends), length - 8 - size)
    return tensors, metadata


def header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """What comes before the data of a safetensors file with these tensors in this order, each of a type in `WRITTEN`;
    where they lie in another file does not matter.
    """
    told: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.nbytes
        told[name] = {"dtype": WRITTEN[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parsed(data: bytes) -> dict[str, Any]:
    """A header as a JSON object in which no name is given twice.

    Raises:
        Fault: it is none, or has more parts than any model's.
    """
    if sum(data.count(sign) for sign in (b"{", b"[", b'"')) > MOST_SIGNS:
        raise Fault("its header has more parts than any model's")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Fault(f"its header is no JSON ({shown(str(error))})") from error
    if not isinstance(header, dict):
        raise Fault("its header is no JSON object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Fault(f"its header has the name {shown(twice)} twice")
    return found


def _no_number(name: str) -> None:
    raise Fault(f"its header holds {name} in place of a number")


def _tensor(name: str, entry: Any, data: int, ends: list[tuple[int, int, str]]) -> TensorInfo:
    """The tensor of an entry, checked; `data` is where the data begins, `ends` gets the stretch it claims."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise Fault(f"its entry {shown(name)} is no tensor")
    dtype = TYPES.get(entry["dtype"])
    if dtype is None:
        raise Fault(f"{shown(name)} has the unknown type {shown(entry['dtype'])}")
    shape, offsets = checked_shape(entry.get("shape")), entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise Fault(f"{shown(name)} does not say where its data lies")
    info = TensorInfo(dtype, shape, contiguous(shape), data + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        raise Fault(
            f"{shown(name)} has {offsets[1] - offsets[0]} bytes for {shown(shape)} of {SIZES[dtype]} bytes each"
        )
    ends.append((offsets[0], offsets[1], name))
    return info


def _check_filled(stretches: list[tuple[int, int, str]], length: int) -> None:
    """Tensors lie one behind the other, without gaps or overlaps, to the end of the file."""
    end = 0
    for start, stop, name in stretches:
        if start != end:
            raise Fault(f"the data of {shown(name)} {'overlaps another' if start < end else 'leaves a gap before it'}")
        end = stop
    if end > length:
        raise Fault(f"it is cut short: its tensors have {end} bytes, of which {length} are there")
    if end < length:
        raise Fault(f"it goes on for {length - end} bytes behind its last tensor")
