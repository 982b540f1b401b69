"""Conversion of tensor names and shapes between two layouts.

The two layouts are one original file (CompVis, Stability AI) and a diffusers folder. Everything works on names and
shapes; torch is imported only where tensors are joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdb.errors import ModelError
from fastdb.reporting import counted

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

Change = Literal["same", "pointwise", "transposed", "fused"]
"""Difference besides the name. "pointwise": a matrix that is stored as such, [out, in], or as a 1x1 convolution,
[out, in, 1, 1]; "transposed": a matrix with rows and columns exchanged; "fused": the original stacks the three tensors
of query, key and value along the first dimension."""

AGAIN = "Download the model again; the download may be incomplete."
BROKEN = "Download the model again, or choose a different model."

UNET_ROOT = "model.diffusion_model"
VAE_ROOT = "first_stage_model"
"""Prefixes of the UNet's and the autoencoder's keys in an original file."""
CONV_IN = f"{UNET_ROOT}.input_blocks.0.0.weight"

CLIP_PREFIX = "text_model."
"""transformers 5 omits it for a text encoder made from a configuration; diffusers rejects an original file without it.
Both forms are read, the prefixed form is written."""
POSITION_IDS = f"{CLIP_PREFIX}embeddings.position_ids"
"""int64, [1, tokens], 0, 1, 2, ...; a buffer in older files."""
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in diffusers before 0.17, with the current names."""
_CLIP_KEY = re.compile(r"((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)(?!text_model\.)")


def modern_name(part: str, name: str) -> str:
    """Return the current diffusers name for an older or unprefixed name."""
    if part.startswith("text_encoder"):
        return name if name.startswith((CLIP_PREFIX, "text_projection.")) else CLIP_PREFIX + name
    if part == "vae" and ".attentions.0." in name:
        head, tail = name.split(".attentions.0.")
        layer, _, kind = tail.rpartition(".")
        return f"{head}.attentions.0.{OLD_VAE_ATTENTION.get(layer, layer)}.{kind}"
    return name


def ema_key(key: str) -> str:
    """Return the original key of a UNet weight's running average (EMA).

    It has no inner dots.
    """
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def _modern_key(key: str) -> str:
    """Return a tensor's key with `text_model.`, which some converters omit."""
    return _CLIP_KEY.sub(rf"\1{CLIP_PREFIX}", key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A tensor of an original file and its counterparts in diffusers."""

    original: str
    """The full key in an original file."""
    part: str
    """The diffusers part: "unet", "vae", "text_encoder" or "text_encoder_2"."""
    names: tuple[str, ...]
    """Names in that part in current diffusers: a single name, or those of query, key and value."""
    change: Change = "same"
    dims: tuple[int, int] = (2, 2)
    """Number of dimensions of a pointwise weight, as written to an original file and to diffusers. Both are read."""

    def original_shape(self, *shapes: Shape) -> Shape:
        """Return the shape in an original file.

        Args:
            shapes: those in diffusers, in the order of `names`.

        Raises:
            ModelError: the shapes are impossible for this tensor.
        """
        if len(shapes) != len(self.names):
            raise ValueError(f"{self.original} consists of {len(self.names)} tensors, not {len(shapes)}")
        first = shapes[0]
        if self.change == "fused":
            if len(set(shapes)) > 1 or not first:
                raise self._invalid_shape(", ".join(str(list(shape)) for shape in shapes), "three equal shapes")
            return (3 * first[0], *first[1:])
        return self._converted(first, self.dims[0])

    def shapes(self, original: Shape) -> tuple[Shape, ...]:
        """Return the diffusers shapes in the order of `names`.

        Args:
            original: the shape in an original file.

        Raises:
            ModelError: the shape is impossible for this tensor.
        """
        if self.change == "fused":
            if not original or original[0] % 3:
                raise self._invalid_shape(str(list(original)), "a row count divisible by three")
            return ((original[0] // 3, *original[1:]),) * 3
        return (self._converted(original, self.dims[1]),)

    def join(self, *tensors: Tensor) -> Tensor:
        """Return the original tensor.

        It is made of diffusers tensors in the order of `names`. The result is contiguous and may share memory with its
        source.

        Raises:
            ModelError: see `original_shape`.
        """
        shape = self.original_shape(*(tuple(tensor.shape) for tensor in tensors))
        if self.change == "fused":
            import torch

            return torch.cat(tensors)
        return (tensors[0].t() if self.change == "transposed" else tensors[0]).contiguous().reshape(shape)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the diffusers tensors in the order of `names`.

        The results are contiguous and may share memory with their source.

        Raises:
            ModelError: see `shapes`.
        """
        shapes = self.shapes(tuple(tensor.shape))
        if self.change == "fused":
            return tuple(piece.contiguous() for piece in tensor.chunk(3))
        return ((tensor.t() if self.change == "transposed" else tensor).contiguous().reshape(shapes[0]),)

    def _converted(self, shape: Shape, dims: int) -> Shape:
        """Return a shape in the other layout.

        A pointwise weight has `dims` dimensions there.
        """
        if self.change == "transposed":
            if len(shape) != 2:
                raise self._invalid_shape(str(list(shape)), "a matrix")
            return shape[::-1]
        if self.change == "pointwise":
            if not 2 <= len(shape) <= 4 or set(shape[2:]) - {1}:
                raise self._invalid_shape(str(list(shape)), "a matrix or a 1x1 convolution")
            return shape[:2] + (1,) * (dims - 2)
        return shape

    def _invalid_shape(self, shape: str, expected: str) -> ModelError:
        return ModelError(f"has the invalid shape {shape}, expected {expected}", subject=self.original, fix=BROKEN)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A planned conversion of a tensor."""

    line: Line
    stored: tuple[str, ...]
    """Names as the source spells them: those in the part, in the order of `line.names`, or a single original key."""
    shapes: tuple[Shape, ...]
    """Shapes to write: a single shape for `line.original`, or a shape for each of `line.names`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensors of a model family in both layouts."""

    family: str
    title: str
    """The family's common name."""
    lines: Mapping[str, Line]
    """Lines by required key of an original file."""
    parts: tuple[str, ...]
    """Parts of the diffusers folder."""
    by_name: Mapping[tuple[str, str], Line]
    """Lines by part and name in diffusers."""
    channels: int
    """Input channels of the UNet: 4 of a latent, 9 for inpainting."""
    position_ids: tuple[str, ...]
    """Keys of int64 position numbers, [1, tokens], which older programs expect in files of this family."""
    optional: re.Pattern[str]
    """Matches further keys that a file may contain."""

    def known(self, part: str, names: Iterable[str]) -> dict[str, str]:
        """Map the current name of each tensor to the given name.

        Position numbers are left out.

        Raises:
            ModelError: a name is unknown to the family, or two names belong to the same tensor.
        """
        given: dict[str, str] = {}
        for name in names:
            modern = modern_name(part, name)
            if modern == POSITION_IDS:
                continue
            if (part, modern) not in self.by_name:
                what = f"is an unexpected tensor in the {part} of {self.title}"
                raise ModelError(what, subject=name, fix=f"Use the {part} of a {self.title} model.")
            if modern in given:
                what = f"the {part} contains this tensor twice, also as {given[modern]}"
                raise ModelError(what, where=name, fix="Save the model again with a single library.")
            given[modern] = name
        return given

    def to_original(self, parts: Mapping[str, Mapping[str, Shape]]) -> list[Move]:
        """Plan an original file with every required key.

        Args:
            parts: names, of any diffusers version, and shapes by part.

        Raises:
            ModelError: a part or a tensor is missing, unknown or duplicate, or has an impossible shape.
        """
        if set(parts) != set(self.parts):
            expected, actual = ", ".join(self.parts), ", ".join(sorted(parts)) or "nothing"
            what = f"{self.title} consists of {expected}, not of {actual}"
            raise ModelError(what, where=self.family, fix="Provide all parts of one model.")
        names = {part: self.known(part, shapes) for part, shapes in parts.items()}
        missing = [(part, name) for part, name in self.by_name if name not in names[part]]
        if missing:
            part, name = missing[0]
            raise ModelError(
                f"is missing from the {part} ({counted(len(missing), 'tensor')} missing)", subject=name, fix=AGAIN
            )
        moves = []
        for line in self.lines.values():
            stored = tuple(names[line.part][name] for name in line.names)
            shape = line.original_shape(*(tuple(parts[line.part][name]) for name in stored))
            self._check_channels(line.original, shape)
            moves.append(Move(line=line, stored=stored, shapes=(shape,)))
        return moves

    def to_diffusers(self, file: Mapping[str, Shape]) -> list[Move]:
        """Plan a diffusers folder with every tensor of every part.

        Args:
            file: shapes by key of an original file; optional keys are left out.

        Raises:
            ModelError: a key is missing, unknown or duplicate, or has an impossible shape.
        """
        given: dict[str, str] = {}
        unknown = []
        for key in file:
            modern = _modern_key(key)
            if modern in given:
                what = f"the file contains this tensor twice, also as {given[modern]}"
                raise ModelError(what, where=key, fix="Choose another copy of this model.")
            given[modern] = key
            if modern not in self.lines and not self.optional.fullmatch(modern):
                unknown.append(key)
        if unknown:
            what = f"is an unexpected tensor in a file of {self.title} ({len(unknown)} unexpected)"
            raise ModelError(what, subject=min(unknown), fix=f"Use a file of {self.title}.")
        missing = [key for key in self.lines if key not in given]
        if missing:
            what = f"is missing from the file of {self.title} ({counted(len(missing), 'tensor')} missing)"
            raise ModelError(what, subject=missing[0], fix=AGAIN)
        moves = []
        for key, line in self.lines.items():
            shape = tuple(file[given[key]])
            self._check_channels(key, shape)
            moves.append(Move(line=line, stored=(given[key],), shapes=line.shapes(shape)))
        return moves

    def _check_channels(self, key: str, shape: Shape) -> None:
        if key == CONV_IN and shape[1:2] != (self.channels,):
            channels = shape[1] if len(shape) > 1 else "no"
            what = f"the UNet has {channels} input channels, but that of {self.title} has {self.channels}"
            fix = "Choose the inpainting family." if channels == 9 else "Choose the family of this model."
            raise ModelError(what, where=key, fix=fix)
