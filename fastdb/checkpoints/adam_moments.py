"""Sort order of 8-bit optimizer moments in compressed files of earlier versions.

Versions until November 2026 sorted the moments of 8-bit AdamW by a predicted magnitude before compression. Trained mini
checkpoints became 0.7 % smaller and took 20 % more CPU time to compress, so moments are no longer written sorted; this
module reads those files.

A moment is a code for a fraction of the largest number in its block of 256: `qmap[state] * absmax[block]` (Dettmers et
al. 2022, sections 2.1 and 2.2). The second moment is predicted by its row and column (Shazeer and Stern 2018, section
3), the first by the root of the second. Only integers and the bits of floats are used, so that the order is the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FIRST, SECOND = "state1", "state2"
"""Last parts of the names of the two moments of a weight. The first is sorted by means of the second."""

_BLOCK = 256
"""Numbers that share one scale."""

_ONE = 127 << 3
"""The logarithm of 1."""

_STEPS = 511
"""Twice the number of keys: sizes from the largest of a block down to 2 to the power of -64 of it."""

_ROOM = 25 << 3
"""How far the root of a second moment may be above the largest first moment of its block."""

_LEAST = np.float32(1e-8)
"""Smallest fraction; the one below is 0, which has no logarithm."""

Siblings = Callable[[str], np.ndarray]
"""Returns a tensor of the same weight in one dimension, by the last part of its name."""


def sort_keys(
    name: str, shape: tuple[int, ...], lines: np.ndarray, siblings: Siblings
) -> Callable[[int, int], np.ndarray]:
    """Return a function that computes the sort keys of a moment.

    Args:
        name: last part of the moment's name.
        lines: (rows + columns,) of int16 for a second moment: the mean logarithm of each row, then the mean of each
            column relative to all.

    Returns:
        A function of the first number, where a block begins, and the end; it returns keys of uint8 for `decode`.
    """
    second = _logarithms(siblings("absmax2"))
    if name == SECOND:
        columns = _columns(shape)
        of_row, of_column = lines[: len(lines) - columns], lines[len(lines) - columns :]
        scale = second + (_ONE - _STEPS)
    else:
        table, codes = _logarithms(np.maximum(siblings("qmap2"), _LEAST)) >> 1, siblings(SECOND)
        # The root of the second moment halves its logarithm; relative to the first's largest it is a difference.
        scale = _logarithms(siblings("absmax1")) - (second >> 1) + (_ROOM - _STEPS)

    def keys(start: int, end: int) -> np.ndarray:
        if name == SECOND:
            top, bottom = start // columns, (end - 1) // columns + 1
            sums = (of_row[top:bottom, None] + of_column).reshape(-1)
            sizes = sums[start - top * columns :][: end - start]
        else:
            sizes = table[codes[start:end]]
        whole = (end - start) // _BLOCK * _BLOCK
        scales = scale[start // _BLOCK : -(-end // _BLOCK)]
        blocks = sizes[:whole].reshape(-1, _BLOCK)
        blocks -= scales[: len(blocks), None]
        sizes[whole:] -= scales[-1]
        sizes >>= 1
        key: np.ndarray = np.minimum(np.maximum(sizes, 0, out=sizes), 255, out=sizes).astype(np.uint8)
        return key

    return keys


def lines_length(shape: tuple[int, ...]) -> int:
    """Return the size in bytes of the `lines` of a second moment; 0 if it cannot be sorted by them."""
    columns = _columns(shape)
    return 2 * (shape[0] + columns) if columns else 0


def can_sort(name: str, count: int, sibling: Callable[[str], tuple[str, int]]) -> bool:
    """Whether all tensors exist that the keys of a moment of `count` numbers need.

    Args:
        name: last part of the moment's name.
        sibling: returns type and count of another tensor of the same weight by the last part of its name; an empty type
            if it does not exist.
    """
    scales = ("float32", -(-count // _BLOCK))
    second = sibling("qmap2") == ("float32", 256) and sibling("absmax2") == scales
    return second and (name == SECOND or (sibling(SECOND) == ("uint8", count) and sibling("absmax1") == scales))


def _logarithms(numbers: np.ndarray) -> np.ndarray:
    """Return about eight times the logarithm to base 2 of float32 magnitudes, plus `_ONE`; int16, at most 2047."""
    return ((numbers.astype("<f4").view("<i4") & 0x7FFFFFFF) >> 20).astype("<i2")


def _columns(shape: tuple[int, ...]) -> int:
    """Return the numbers per row of a tensor of at least two dimensions; 0 if its lines would be too long for it."""
    count, rows = int(np.prod(shape, dtype=np.int64)), shape[0] if len(shape) > 1 else 0
    columns = count // rows if rows else 0
    return columns if 16 * (rows + columns) < count else 0
