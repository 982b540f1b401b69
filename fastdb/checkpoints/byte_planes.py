"""Numbers as compressed planes of bytes, exactly: as they are, or as their difference to numbers known elsewhere.

Of trained weights the upper bytes of that difference are nearly all zero and the lower ones are noise. Each byte of
all numbers together makes a plane; a plane is kept compressed with Zstandard (RFC 8878) where that makes it smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from fastdb.formats.tensor_bits import BITS_TYPES, Bits
from fastdb.formats.tensor_info import Fault

CHUNK = 1 << 20
"""Numbers that are coded together; what coding takes in memory is some twenty times as many bytes for each thread."""

LEVEL = 1
"""Of Zstandard: higher levels find little more in such planes, or less, in many times the time."""

SPARE = zstandard.ZstdCompressionParameters.from_level(LEVEL, hash_log=6, min_match=7, window_log=14)
"""For numbers sorted by a key. Nothing is repeated there but by chance, and a search for it only gets in the way of the
rest; a table of frequencies for every 16 KiB follows the key more closely than one for 128."""

EXPONENTS = {"float16": (10, 0x1F), "bfloat16": (7, 0xFF), "float32": (23, 0xFF), "float64": (52, 0x7FF)}
"""Of the types a difference can be made of (IEEE 754): where the exponent lies in the bits, and its mask."""


def encode(bits: Bits, key: np.ndarray | None = None) -> list[bytes]:
    """The planes of some numbers, the lowest byte's first; one that is as long as `bits` is stored as it is.

    Args:
        bits: (numbers,), one at least.
        key: (numbers,) of uint8, which `decode` needs again. Numbers of equal keys are put together first: where a
            key tells something of a number's size, the planes become smaller.
    """
    if key is not None:
        bits = bits[np.argsort(key, kind="stable")]
    table = bits.view(np.uint8).reshape(len(bits), -1)
    packer = (
        zstandard.ZstdCompressor(level=LEVEL) if key is None else zstandard.ZstdCompressor(compression_params=SPARE)
    )
    return [pressed(np.ascontiguousarray(table[:, number]).tobytes(), packer) for number in range(table.shape[1])]


def pressed(data: bytes, packer: zstandard.ZstdCompressor | None = None) -> bytes:
    """Bytes compressed, or as they are where that would not make them fewer."""
    packed = (packer or zstandard.ZstdCompressor(level=LEVEL)).compress(data)
    return packed if len(packed) < len(data) else data


def decode(planes: Sequence[bytes], count: int, key: np.ndarray | None = None) -> Bits:
    """The `count` numbers that `encode` made these planes of, with the same `key`.

    Raises:
        Fault: a plane is damaged, or holds another number of bytes.
    """
    table = np.empty((count, len(planes)), np.uint8)
    for number, plane in enumerate(planes):
        table[:, number] = np.frombuffer(unpressed(plane, count), np.uint8)
    bits = table.reshape(-1).view(BITS_TYPES[len(planes)])
    if key is None:
        return bits
    placed = np.empty_like(bits)
    placed[np.argsort(key, kind="stable")] = bits
    return placed


def difference(bits: Bits, base: Bits) -> Bits:
    """How far numbers are from others of their floating type, in steps from one such number to the next.

    Small whether a number grew or shrank, and through zero: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4. Exact for every
    pattern of bits, those of NaN too. Both (numbers,).
    """
    signed = _in_order(bits) - _in_order(base)
    zigzag: Bits = ((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).view(bits.dtype)
    return zigzag


def restored(steps: Bits, base: Bits) -> Bits:
    """The numbers whose `difference` to `base` is `steps`, both (numbers,)."""
    one = steps.dtype.type(1)
    signed = (steps >> one).view(_signed(steps)) ^ -(steps & one).view(_signed(steps))
    return _in_order((signed + _in_order(base)).view(steps.dtype)).view(steps.dtype)


def exponents(base: Bits, dtype: str) -> np.ndarray:
    """The key for differences to `base`: its exponents, (numbers,) of uint8, cut to their upper bits if need be.

    A step of an optimizer is as wide for small weights as for large ones, and so more steps of their type.
    """
    shift, mask = EXPONENTS[dtype]
    shift, mask = shift + max(0, mask.bit_length() - 8), min(mask, 0xFF)
    return ((base >> base.dtype.type(shift)) & base.dtype.type(mask)).astype(np.uint8)


def _in_order(bits: Bits) -> np.ndarray:
    """Signed integers in the order of the floats of these bits, -0.0 just below 0.0; its own inverse."""
    signed = bits.view(_signed(bits))
    width = 8 * signed.itemsize - 1
    return signed ^ ((signed >> width) & signed.dtype.type((1 << width) - 1))


def _signed(bits: Bits) -> str:
    return f"<i{bits.itemsize}"


def unpressed(plane: bytes, count: int) -> bytes:
    """The `count` bytes that `pressed` was given. How long it says it is comes first: no more memory is ever taken.

    Raises:
        Fault: it is damaged, or holds another number of bytes.
    """
    if len(plane) == count:
        return plane
    try:
        if zstandard.frame_content_size(plane) != count:
            raise Fault("a plane in it holds another number of bytes than it should")
        data = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(plane, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Fault(f"a plane in it cannot be unpacked ({error})") from error
    if len(data) != count:
        raise Fault("a plane in it holds another number of bytes than it should")
    return data
