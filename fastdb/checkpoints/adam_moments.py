"""Moments that bitsandbytes keeps in 8 bit, put in order by how large each must be about, before it is known.

A moment is a code for a share of the largest number in its block of 256: `qmap[state] * absmax[block]` (Dettmers et al.
2022, sections 2.1 and 2.2). How large it is follows from what stands beside it: the second moment nearly from its row
and its column (Shazeer and Stern 2018, section 3), the first from the root of the second. Reading needs only whole
numbers and the bits of floats, so that every machine finds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FIRST, SECOND = "state1", "state2"
"""Last parts of the names of the two moments of a weight, of which the first is coded by the second."""

BLOCK = 256
"""Numbers that share one scale."""

ONE = 127 << 3
"""The logarithm of 1."""

STEPS = 511
"""What keys tell apart, by twos: sizes from that of the largest of a block down to 2 to the power of -64 of it."""

ROOM = 25 << 3
"""How far the root of a second moment may be above the largest first one of its block."""

LEAST = np.float32(1e-8)
"""Of shares; the one below it is 0, which has no logarithm."""

Beside = Callable[[str], np.ndarray]
"""A tensor of the same weight in one dimension, by the last part of its name."""


@dataclass(frozen=True)
class Expected:
    """How large the numbers of a moment must be about, in logarithms that are int16."""

    size: Callable[[int, int], np.ndarray]
    """From one number to another."""
    scale: np.ndarray
    """Of each block, (blocks,): what is taken from them to make keys."""

    def key(self, start: int, end: int) -> np.ndarray:
        """A key for `planes.encode` of the numbers from `start`, where a block begins, to `end`: uint8."""
        sizes, whole = self.size(start, end), (end - start) // BLOCK * BLOCK
        scale = self.scale[start // BLOCK : -(-end // BLOCK)]
        blocks = sizes[:whole].reshape(-1, BLOCK)
        blocks -= scale[: len(blocks), None]
        sizes[whole:] -= scale[-1]
        sizes >>= 1
        key: np.ndarray = np.minimum(np.maximum(sizes, 0, out=sizes), 255, out=sizes).astype(np.uint8)
        return key


def of_first(beside: Beside) -> Expected:
    """How large first moments are about, from the second ones."""
    table, codes = logarithms(np.maximum(beside("qmap2"), LEAST)) >> 1, beside(SECOND)
    second, first = logarithms(beside("absmax2")), logarithms(beside("absmax1"))
    # The root of the second is a half of its logarithm; a share of the first one's largest is a difference to that.
    return Expected(lambda start, end: table[codes[start:end]], first - (second >> 1) + (ROOM - STEPS))


def of_second(lines: np.ndarray, columns: int, beside: Beside) -> Expected:
    """How large second moments are about, from what `lines_of` found."""
    of_row, of_column = lines[: len(lines) - columns], lines[len(lines) - columns :]

    def size(start: int, end: int) -> np.ndarray:
        top, bottom = start // columns, (end - 1) // columns + 1
        sums: np.ndarray = (of_row[top:bottom, None] + of_column).reshape(-1)[start - top * columns :][: end - start]
        return sums

    return Expected(size, logarithms(beside("absmax2")) + (ONE - STEPS))


def lines_of(columns: int, beside: Beside) -> np.ndarray:
    """The mean logarithm of second moments in each row, then by how much that in each column is above all, int16."""
    table, codes = logarithms(np.maximum(beside("qmap2"), LEAST)), beside(SECOND)
    sizes = table[codes] + np.repeat(logarithms(beside("absmax2")), BLOCK)[: len(codes)]
    sizes = sizes.reshape(-1, columns)
    of_row, of_column = (sizes.sum(axis, dtype=np.int64) / sizes.shape[axis] for axis in (1, 0))
    return np.rint(np.concatenate([of_row, of_column - of_row.mean()])).astype("<i2")


def logarithms(numbers: np.ndarray) -> np.ndarray:
    """Eight times the logarithm to base 2 of the sizes of float32 numbers, about, and `ONE`; int16, at most 2047."""
    return ((numbers.astype("<f4").view("<i4") & 0x7FFFFFFF) >> 20).astype("<i2")


def columns_of(shape: tuple[int, ...]) -> int:
    """Numbers in each row of a tensor of two dimensions or more, whose first one the rows are along; 0 for others, and
    where rows and columns are too many for what is coded by them."""
    count, rows = int(np.prod(shape, dtype=np.int64)), shape[0] if len(shape) > 1 else 0
    columns = count // rows if rows else 0
    return columns if 16 * (rows + columns) < count else 0


def fits(name: str, count: int, shapes: Callable[[str], tuple[str, int]]) -> bool:
    """Whether all is there that is needed to code a moment of `count` numbers in 8 bit.

    Args:
        name: the last part of its name.
        shapes: the type and the count of another tensor of the same weight, by the last part of its name; "" for one
            that is not there.
    """
    scales = ("float32", -(-count // BLOCK))
    second = shapes("qmap2") == ("float32", 256) and shapes("absmax2") == scales
    return second and (name == SECOND or (shapes(SECOND) == ("uint8", count) and shapes("absmax1") == scales))
