"""Types, shapes and byte positions of tensors in a file."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Bytes per element by torch's name of the type."""

MAX_DIMENSIONS = 16
MAX_TENSORS = 100_000
"""Limits against hostile files; the largest known models have 5 dimensions and several thousand tensors."""

Scalar = str | int | float | bool


class Fault(Exception):
    """A defect of a file, as a clause.

    It becomes a `ModelError` where the file's name is known.
    """


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor stored in a file."""

    dtype: str
    """A key of `SIZES`."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Step between elements along each dimension, in elements."""
    start: int
    """Position of the first element in the file, in bytes."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return self.elements * SIZES[self.dtype]

    @property
    def span(self) -> int:
        """Number of elements from the first to the last in the file.

        It is 0 for an empty tensor.
        """
        if 0 in self.shape:
            return 0
        return sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True)) + 1


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor in C order."""
    return tuple(prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


def is_count(value: Any) -> bool:
    """Return whether a value from a file can count elements or bytes."""
    return type(value) is int and 0 <= value < 1 << 62


def checked_shape(value: Any) -> tuple[int, ...]:
    """Return a shape from a file after validation.

    Raises:
        Fault: the value is not a list of counts, or the tensor would be larger than any disk.
    """
    if not isinstance(value, list | tuple) or len(value) > MAX_DIMENSIONS or not all(map(is_count, value)):
        raise Fault("invalid tensor shape")
    shape = tuple(value)
    if prod(length for length in shape if length) >= 1 << 62:
        raise Fault(f"impossible tensor shape {shown(shape)}")
    return shape


def shown(value: Any) -> str:
    """Return a value from a file as a short escaped line."""
    text = ascii(value) if not isinstance(value, str) or not value.isascii() or not value.isprintable() else value
    return text if len(text) <= 120 else f"{text[:117]}..."
