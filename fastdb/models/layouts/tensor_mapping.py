"""One tensor of an original file: what it is made of in the diffusers layout, and how to go there and back.

Works on shapes alone as well as on tensors; torch is imported only where tensors are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdb.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

Change = Literal["same", "pointwise", "transposed", "fused"]
"""What differs beside the name. "pointwise": a matrix that is stored as one, [out, in], or as a convolution of one
pixel, [out, in, 1, 1]; "transposed": a matrix with rows and columns exchanged; "fused": the original stacks three
tensors, those of query, key and value, along the first dimension."""

BROKEN = "The file is damaged or of another kind of model; download it again."


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of a layout's table."""

    original: str
    """The whole key in an original file."""
    part: str
    """The diffusers part: "unet", "vae", "text_encoder" or "text_encoder_2"."""
    names: tuple[str, ...]
    """The names in that part, as today's diffusers and files from the Hub spell them: one, or query, key and value."""
    change: Change = "same"
    dims: tuple[int, int] = (2, 2)
    """Of a pointwise weight: how many dimensions the original has, and diffusers. Any is understood when reading."""

    def original_shape(self, *shapes: Shape) -> Shape:
        """The shape in an original file of what has these shapes in diffusers, in the order of `names`.

        Raises:
            ModelError: shapes that this tensor cannot have.
        """
        if len(shapes) != len(self.names):
            raise ValueError(f"{self.original} is made of {len(self.names)} tensors, not {len(shapes)}")
        first = shapes[0]
        if self.change == "fused":
            if len(set(shapes)) > 1 or not first:
                raise self._misshapen(", ".join(str(list(shape)) for shape in shapes), "three alike")
            return (3 * first[0], *first[1:])
        return self._turned(first, self.dims[0])

    def shapes(self, original: Shape) -> tuple[Shape, ...]:
        """The shapes in diffusers, in the order of `names`, of a tensor of an original file.

        Raises:
            ModelError: a shape that this tensor cannot have.
        """
        if self.change == "fused":
            if not original or original[0] % 3:
                raise self._misshapen(str(list(original)), "three of the same number of rows")
            return ((original[0] // 3, *original[1:]),) * 3
        return (self._turned(original, self.dims[1]),)

    def join(self, *tensors: Tensor) -> Tensor:
        """The original tensor out of those of diffusers, in the order of `names`: contiguous, perhaps the same memory.

        Raises:
            ModelError: see `original_shape`.
        """
        shape = self.original_shape(*(tuple(tensor.shape) for tensor in tensors))
        if self.change == "fused":
            import torch

            return torch.cat(tensors)
        return (tensors[0].t() if self.change == "transposed" else tensors[0]).contiguous().reshape(shape)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors of diffusers, in the order of `names`, out of the original one: contiguous, perhaps its memory.

        Raises:
            ModelError: see `shapes`.
        """
        shapes = self.shapes(tuple(tensor.shape))
        if self.change == "fused":
            return tuple(piece.contiguous() for piece in tensor.chunk(3))
        return ((tensor.t() if self.change == "transposed" else tensor).contiguous().reshape(shapes[0]),)

    def _turned(self, shape: Shape, dims: int) -> Shape:
        """The other layout's shape of a tensor that is not fused; `dims` it has there if it is pointwise."""
        if self.change == "transposed":
            if len(shape) != 2:
                raise self._misshapen(str(list(shape)), "a matrix")
            return shape[::-1]
        if self.change == "pointwise":
            if not 2 <= len(shape) <= 4 or set(shape[2:]) - {1}:
                raise self._misshapen(str(list(shape)), "a matrix or a convolution of one pixel")
            return shape[:2] + (1,) * (dims - 2)
        return shape

    def _misshapen(self, found: str, wanted: str) -> ModelError:
        return ModelError(f"has the shape {found}, and must be {wanted}", where=self.original, fix=BROKEN)


def both(part: str, ours: str, theirs: str) -> Iterator[Line]:
    """The weight and the bias of a layer that differs in its name alone: `ours` in diffusers, `theirs` in the file."""
    for kind in ("weight", "bias"):
        yield Line(original=f"{theirs}.{kind}", part=part, names=(f"{ours}.{kind}",))


def pointwise(part: str, ours: str, theirs: str, dims: tuple[int, int]) -> Iterator[Line]:
    """The weight and the bias of a layer that sees one pixel; `dims` of its weight in the original and in diffusers."""
    weight, bias = both(part, ours, theirs)
    yield Line(original=weight.original, part=part, names=weight.names, change="pointwise", dims=dims)
    yield bias
