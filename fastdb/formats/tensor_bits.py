"""A tensor as its bits: all that packing needs of it, so that what packs needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastdb.formats.tensor_info import SIZES

if TYPE_CHECKING:
    import torch

Bits = np.ndarray
"""Numbers of any type as unsigned integers of the same width, one dimension, little-endian."""


@dataclass(frozen=True)
class Numbers:
    """A tensor's type, shape and numbers."""

    dtype: str
    """By torch's name, one of `SIZES`."""
    shape: tuple[int, ...]
    bits: Bits
    """In C order, (numbers,)."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Numbers:
        """Those of a tensor, from any device; in its own memory where they lie there in C order."""
        import torch

        dtype, flat = str(tensor.dtype).removeprefix("torch."), tensor.detach().cpu().contiguous().flatten()
        return cls(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().view(bits_type(SIZES[dtype])))

    def tensor(self) -> torch.Tensor:
        """The tensor of them, in the same memory."""
        import torch

        dtype = getattr(torch, self.dtype)
        if not len(self.bits):
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.bits.view(np.uint8)).view(dtype).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the numbers."""
        return self.bits.nbytes

    @property
    def values(self) -> np.ndarray:
        """The numbers themselves, (numbers,), of a type that numpy has; those of bfloat16 as float32."""
        if self.dtype == "bfloat16":
            return (self.bits.astype("<u4") << np.uint32(16)).view("<f4")
        return self.bits.view(np.dtype(self.dtype))

    def to(self, dtype: str) -> Bits | None:
        """The bits of numbers of one of the types in `planes.EXPONENTS` in another of them, rounded to the nearest.

        As torch does it: from float64 to 16 bits by way of float32. None where one is NaN, whose bits not every machine
        makes alike.
        """
        if self.dtype == dtype:
            return self.bits
        values = self.values
        if np.isnan(values).any():
            return None
        if dtype == "float64":
            return values.astype("<f8").view("<u8")
        with np.errstate(over="ignore", under="ignore"):
            single = values.astype("<f4", copy=False)
            if dtype != "bfloat16":
                return single.astype(f"<f{SIZES[dtype]}", copy=False).view(bits_type(SIZES[dtype]))
        bits = single.view("<u4")
        half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        return ((bits + half) >> np.uint32(16)).astype("<u2")


def bits_type(width: int) -> str:
    """numpy's name for the bits of numbers of `width` bytes; there are no integers of 16, and none are needed."""
    return f"<u{width}" if width <= 8 else f"V{width}"
