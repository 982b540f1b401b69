"""What is known of a tensor in a file without reading it: its type, its shape, and where its bytes lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
"""Types by torch's names, and bytes of one element."""

MOST_DIMENSIONS = 16
MOST_TENSORS = 100_000
"""More of either is a trick: the largest models known have 5 dimensions and some thousand tensors."""


class Fault(Exception):
    """What is wrong with a file, a clause; becomes a `ModelError` where the file's name is known."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor that lies in a file."""

    dtype: str
    """One of `SIZES`."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Elements from one to the next along each dimension."""
    start: int
    """Where in the file its first element lies, in bytes."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of these numbers, in bytes."""
        return self.elements * SIZES[self.dtype]

    @property
    def span(self) -> int:
        """Elements from its first to its last in the file, both counted; 0 for an empty tensor."""
        return span(self.shape, self.stride)


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last of a strided tensor, both counted."""
    if 0 in shape:
        return 0
    return sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) + 1


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor in C order."""
    return tuple(prod(shape[place + 1 :]) for place in range(len(shape)))


def is_count(value: Any) -> bool:
    """Whether a value from a file is a whole number that can count elements or bytes."""
    return type(value) is int and 0 <= value < 1 << 62


def checked_shape(value: Any) -> tuple[int, ...]:
    """A shape from a file.

    Raises:
        Fault: it is no list of counts, or makes more elements than any disk holds.
    """
    if not isinstance(value, list | tuple) or len(value) > MOST_DIMENSIONS or not all(map(is_count, value)):
        raise Fault("a shape in it is none")
    shape = tuple(value)
    if prod(length for length in shape if length) >= 1 << 62:
        raise Fault(f"a tensor in it would have the impossible shape {shown(shape)}")
    return shape


def shown(value: Any) -> str:
    """A value from a file as it may stand in a message: one line, escaped, cut."""
    text = ascii(value) if not isinstance(value, str) or not value.isascii() or not value.isprintable() else value
    return text if len(text) <= 120 else f"{text[:117]}..."


Scalar = str | int | float | bool
Values = Mapping[str, Scalar]
