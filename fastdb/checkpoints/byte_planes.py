"""Lossless coding of numbers as compressed byte planes.

Numbers are coded as they are, or as differences to known numbers. Of trained weights the upper bytes of the difference
to the base model are nearly all zero and the lower bytes are noise. Each byte of all numbers together is a plane; a
plane is compressed with Zstandard (RFC 8878) if that makes it smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from fastdb.formats.tensor_bits import BITS_TYPES, Bits
from fastdb.formats.tensor_info import Fault

CHUNK = 1 << 20
"""Numbers that are coded together. Coding takes about twenty times as many bytes of memory per thread."""

LEVEL = 1
"""Zstandard level. Higher levels gain little on such planes, or lose, and take many times as long."""

SPARE = zstandard.ZstdCompressionParameters.from_level(LEVEL, hash_log=6, min_match=7, window_log=14)
"""Zstandard parameters for sorted numbers. Repetitions there are chance, and searching for them makes files larger; a
table of frequencies per 16 KiB follows the sort key more closely than a table per 128 KiB."""

EXPONENTS = {"float16": (10, 0x1F), "bfloat16": (7, 0xFF), "float32": (23, 0xFF), "float64": (52, 0x7FF)}
"""Position of the exponent in the bits, and its mask, for each type that has differences (IEEE 754)."""


def encode(bits: Bits, base: Bits | None = None, dtype: str = "") -> list[bytes]:
    """Encode numbers as planes, the lowest byte's first.

    A plane of `len(bits)` bytes is stored uncompressed.

    Args:
        bits: (numbers,), at least one.
        base: (numbers,), code the differences to these numbers, sorted by the exponents of the base: an optimizer's
            step is about as wide for small weights as for large weights, and so spans more values of their type.
        dtype: type of the numbers, with a base.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    if base is not None:
        bits = _difference(bits, base)[np.argsort(_exponents(base, dtype), kind="stable")]
        compressor = zstandard.ZstdCompressor(compression_params=SPARE)
    table = bits.view(np.uint8).reshape(len(bits), -1)
    planes = []
    for number in range(table.shape[1]):
        plane = np.ascontiguousarray(table[:, number]).tobytes()
        compressed = compressor.compress(plane)
        planes.append(compressed if len(compressed) < len(plane) else plane)
    return planes


def decode(
    planes: Sequence[bytes], count: int, base: Bits | None = None, dtype: str = "", key: np.ndarray | None = None
) -> Bits:
    """Decode the `count` numbers of some planes.

    Args:
        base, dtype: the arguments of `encode`.
        key: (numbers,) of uint8, by which the numbers were sorted before they were encoded without a base.

    Raises:
        Fault: a plane is damaged or has the wrong length.
    """
    table = np.empty((count, len(planes)), np.uint8)
    for number, plane in enumerate(planes):
        table[:, number] = np.frombuffer(_decompress(plane, count), np.uint8)
    bits: Bits = table.reshape(-1).view(BITS_TYPES[len(planes)])
    if base is not None:
        key = _exponents(base, dtype)
    if key is not None:
        unsorted = np.empty_like(bits)
        unsorted[np.argsort(key, kind="stable")] = bits
        bits = unsorted
    return bits if base is None else _restored(bits, base)


def _decompress(plane: bytes, count: int) -> bytes:
    """Return the `count` bytes of a plane. Its declared length is checked first, which bounds the memory.

    Raises:
        Fault: it is damaged or has another length.
    """
    if len(plane) == count:
        return plane
    try:
        if zstandard.frame_content_size(plane) != count:
            raise Fault("a compressed plane has the wrong length")
        data = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(plane, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Fault(f"a compressed plane is damaged ({error})") from error
    if len(data) != count:
        raise Fault("a compressed plane has the wrong length")
    return data


def _difference(bits: Bits, base: Bits) -> Bits:
    """Return how far numbers are from others of their floating type, counted in representable numbers.

    Small for growing and shrinking numbers, also across zero: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4 (zigzag). Exact for
    every bit pattern, including NaN. Both (numbers,).
    """
    signed = _ordered(bits) - _ordered(base)
    zigzag: Bits = ((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).view(bits.dtype)
    return zigzag


def _restored(steps: Bits, base: Bits) -> Bits:
    """Return the numbers whose `_difference` to `base` is `steps`, both (numbers,)."""
    unit = steps.dtype.type(1)
    signed = (steps >> unit).view(_signed(steps)) ^ -(steps & unit).view(_signed(steps))
    return _ordered((signed + _ordered(base)).view(steps.dtype)).view(steps.dtype)


def _exponents(base: Bits, dtype: str) -> np.ndarray:
    """Return the exponents of numbers, (numbers,) of uint8, reduced to their upper bits where they have more."""
    shift, mask = EXPONENTS[dtype]
    shift, mask = shift + max(0, mask.bit_length() - 8), min(mask, 0xFF)
    return ((base >> base.dtype.type(shift)) & base.dtype.type(mask)).astype(np.uint8)


def _ordered(bits: Bits) -> np.ndarray:
    """Return signed integers in the order of the floats of these bits, -0.0 just below 0.0; its own inverse."""
    signed = bits.view(_signed(bits))
    width = 8 * signed.itemsize - 1
    return signed ^ ((signed >> width) & signed.dtype.type((1 << width) - 1))


def _signed(bits: Bits) -> str:
    return f"<i{bits.itemsize}"
