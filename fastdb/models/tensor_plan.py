"""What goes into a model file, tensor by tensor: where each comes from, and how it is made when its turn comes.

Nothing is read while planning but names, types and shapes. Memory: the tensor being made and what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.formats.safetensors_writer import Entry
from fastdb.models.layouts.layout import VAE_ROOT, Layout, Move, ema_key

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LARGEST = {torch.float16: 65504.0}
"""What a type cannot hold more than, where that is less than weights may be."""


@dataclass(frozen=True)
class Planned:
    """A tensor of a file to come; `make` gives it in any type, `of` says what it belongs to, for messages."""

    entry: Entry
    of: str
    make: Callable[[], torch.Tensor]
    forget: Callable[[], None] = lambda: None
    """Give back the memory that `make` took."""

    def tensor(self) -> torch.Tensor:
        """The tensor as it goes into the file.

        Raises:
            ModelError: it holds NaN or infinity, or numbers that its type cannot hold.
        """
        made = self.make()
        if made.is_floating_point() and self.entry.dtype.is_floating_point:
            self._check(made)
        elif made.dtype != self.entry.dtype:
            raise ModelError(
                f"is no weight but {made.dtype}", where=self.entry.name, fix="Choose another copy of this model."
            )
        return made.to(self.entry.dtype).reshape(self.entry.shape)

    def _check(self, made: torch.Tensor) -> None:
        if not made.numel():
            return
        # One pass without a copy; NaN comes through as either end.
        least, most = (float(end) for end in torch.aminmax(made))
        largest = max(-least, most)
        if not -float("inf") < least <= most < float("inf"):
            raise ModelError(
                f"the {self.of} holds NaN or infinite numbers in this tensor",
                where=self.entry.name,
                fix="If it was trained here, training has diverged: export an earlier checkpoint, and train with a "
                "lower rate.",
            )
        if largest > LARGEST.get(self.entry.dtype, float("inf")):
            raise ModelError(
                f"the {self.of} holds {largest:.3g} in this tensor, and fp16 ends at 65504",
                where=self.entry.name,
                fix="Write it as fp32 or bf16.",
            )


def from_parts(
    layout: Layout, parts: Mapping[str, TensorFile], dtype: torch.dtype, *, vae: TensorFile | None = None
) -> list[Planned]:
    """The original file of a model that lies in parts, in diffusers' names; `vae` takes its autoencoder's place.

    Raises:
        ModelError: a part lacks a tensor, or has one that the family does not know.
    """
    shapes = {part: _shapes(file) for part, file in parts.items()}
    planned = []
    for move in layout.to_original(shapes):
        file = parts[move.line.part]
        entry = Entry(move.line.original, dtype, move.shapes[0])
        planned.append(Planned(entry, move.line.part, _joined(move, file), file.forget))
    return _ordered(layout, _with_vae(layout, planned, vae, dtype))


def from_file(
    layout: Layout, file: TensorFile, dtype: torch.dtype, *, averaged: bool = False, vae: TensorFile | None = None
) -> list[Planned]:
    """The original file of a model that lies in one already, without what is not needed to draw.

    Args:
        averaged: take the running averages (EMA) of the UNet's weights in place of the weights.
        vae: an autoencoder to take in place of the file's own, in either layout.

    Raises:
        ModelError: the file lacks a tensor or has an unknown one; or it has no running averages.
    """
    planned = []
    for move in layout.to_diffusers(_shapes(file)):
        (stored,), key = move.stored, move.line.original
        if averaged and move.line.part == "unet":
            stored = _averaged(file, key)
        # A matrix may be stored as a convolution of one pixel and the other way round: the layout's shape counts.
        shape = move.line.original_shape(*move.shapes)
        planned.append(Planned(Entry(key, dtype, shape), move.line.part, _read(file, stored), file.forget))
    return _ordered(layout, _with_vae(layout, planned, vae, dtype))


def to_parts(
    layout: Layout, file: TensorFile, dtype: torch.dtype, *, averaged: bool = False
) -> dict[str, list[Planned]]:
    """The parts of the diffusers folder of a model that lies in one file, each in the order of its names.

    Raises:
        ModelError: see `from_file`.
    """
    parts: dict[str, list[Planned]] = {part: [] for part in layout.parts}
    for move in layout.to_diffusers(_shapes(file)):
        stored = move.stored[0]
        if averaged and move.line.part == "unet":
            stored = _averaged(file, move.line.original)
        for number, (name, shape) in enumerate(zip(move.line.names, move.shapes, strict=True)):
            make = _split(move, file, stored, number)
            parts[move.line.part].append(Planned(Entry(name, dtype, shape), move.line.part, make, file.forget))
    return {part: sorted(planned, key=lambda one: one.entry.name) for part, planned in parts.items()}


def vae_keys(layout: Layout, file: TensorFile, dtype: torch.dtype) -> list[Planned]:
    """An autoencoder as an original file has it: from a diffusers file, or an original one with or without prefix.

    Raises:
        ModelError: it is no autoencoder of this family.
    """
    lines = [line for line in layout.lines.values() if line.part == "vae"]
    plain = {name.removeprefix(f"{VAE_ROOT}."): name for name in file.tensors}
    planned = []
    if any(".down_blocks." in name for name in file.tensors):
        names = layout.known("vae", file.tensors)
        stored = {line.original: names.get(line.names[0]) for line in lines}
    else:
        stored = {line.original: plain.get(line.original.removeprefix(f"{VAE_ROOT}.")) for line in lines}
    for line in lines:
        name = stored[line.original]
        if name is None:
            what = f"it lacks tensors of the autoencoder of a {layout.title}, among them {line.original}"
            raise ModelError(what, where=file.path, fix="Give the file of an autoencoder.")
        shape = line.original_shape(file.tensors[name].shape)
        planned.append(Planned(Entry(line.original, dtype, shape), "vae", _read(file, name), file.forget))
    return planned


def _with_vae(layout: Layout, planned: list[Planned], vae: TensorFile | None, dtype: torch.dtype) -> list[Planned]:
    return planned if vae is None else [one for one in planned if one.of != "vae"] + vae_keys(layout, vae, dtype)


def opened(parts: Mapping[str, Path]) -> dict[str, TensorFile]:
    """The files of parts, described.

    Raises:
        ModelError: one is not there, or is no safetensors file.
    """
    found = {}
    for part, path in parts.items():
        if not path.is_file():
            raise ModelError(f"there is no such file for the {part}", where=path, fix="Check the path.")
        found[part] = open_tensors(path)
    return found


def _ordered(layout: Layout, planned: Sequence[Planned]) -> list[Planned]:
    """In the order of names; position numbers first, since wider types before narrower ones keep data aligned."""
    places = [_positions(key, planned) for key in layout.position_ids]
    return [*places, *sorted(planned, key=lambda one: one.entry.name)]


def _positions(key: str, planned: Sequence[Planned]) -> Planned:
    table = key.removesuffix("position_ids") + "position_embedding.weight"
    tokens = next(one.entry.shape[0] for one in planned if one.entry.name == table)
    return Planned(Entry(key, torch.int64, (1, tokens)), "text_encoder", lambda: torch.arange(tokens)[None])


def _averaged(file: TensorFile, key: str) -> str:
    name = ema_key(key)
    if name not in file.tensors:
        raise ModelError("holds no running averages (EMA)", where=file.path, fix="Convert it without --ema.")
    return name


def _shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in file.tensors.items()}


def _joined(move: Move, file: TensorFile) -> Callable[[], torch.Tensor]:
    return lambda: move.line.join(*(file.read(name) for name in move.stored))


def _read(file: TensorFile, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.read(name)


def _split(move: Move, file: TensorFile, stored: str, number: int) -> Callable[[], torch.Tensor]:
    return lambda: move.line.split(file.read(stored))[number]
