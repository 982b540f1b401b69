"""Tensors as arrays of bits, which compression can handle without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastdb.formats.tensor_info import SIZES

if TYPE_CHECKING:
    import torch

Bits = np.ndarray
"""One-dimensional array of unsigned integers with the width of the numbers they encode, little-endian."""

BITS_TYPES = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "V16"}
"""numpy types of `Bits` by width in bytes; numpy has no integers of 16 bytes."""


@dataclass(frozen=True)
class Numbers:
    """Type, shape and bits of a tensor."""

    dtype: str
    """Torch's name of the type, a key of `SIZES`."""
    shape: tuple[int, ...]
    bits: Bits
    """In C order, (elements,)."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Numbers:
        """Return the bits of a tensor on any device.

        They share its memory if it is contiguous on the CPU.
        """
        import torch

        dtype, flat = str(tensor.dtype).removeprefix("torch."), tensor.detach().cpu().contiguous().flatten()
        return cls(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().view(BITS_TYPES[SIZES[dtype]]))

    def tensor(self) -> torch.Tensor:
        """Return a torch tensor that shares memory with the bits."""
        import torch

        dtype = getattr(torch, self.dtype)
        if not len(self.bits):
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.bits.view(np.uint8)).view(dtype).reshape(self.shape)

    @property
    def values(self) -> np.ndarray:
        """Numbers as a numpy array, (elements,), with bfloat16 as float32."""
        if self.dtype == "bfloat16":
            return (self.bits.astype("<u4") << np.uint32(16)).view("<f4")
        return self.bits.view(np.dtype(self.dtype))

    def to(self, dtype: str) -> Bits | None:
        """Return the bits after conversion to another floating-point type.

        Types are float16, bfloat16, float32 and float64. Numbers are rounded to the nearest; as in torch, float64 is
        converted to 16 bits by way of float32. Returns None if a number is NaN, whose bits depend on the machine.
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
                return single.astype(f"<f{SIZES[dtype]}", copy=False).view(BITS_TYPES[SIZES[dtype]])
        bits = single.view("<u4")
        half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        return ((bits + half) >> np.uint32(16)).astype("<u2")
