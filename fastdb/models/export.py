"""Export of models to one verified file in the original layout.

An export is a pure function of its weight files. It is planned from names and shapes, written to a temporary file
tensor by tensor, read back from the disk byte by byte, inspected without torch, and only then renamed.
Memory: the tensor being written, and the tensors that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastdb.errors import ModelError, StorageError
from fastdb.formats.ckpt_writer import write_ckpt
from fastdb.formats.hashing_writer import AGAIN, read_back
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.formats.safetensors_file import Entry, write_safetensors
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.layouts.layout import VAE_ROOT, Layout, Move, ema_key
from fastdb.models.layouts.tables import layout_of
from fastdb.models.lora.adapter import MergedFile, is_adapter, read_adapter
from fastdb.models.prediction import probe_unet, write_yaml
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import flush, writing

Precision = Literal["fp16", "bf16", "fp32"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LARGEST = {torch.float16: 65504.0}
"""The largest finite number of a type, if weights may exceed it."""

ENDINGS = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Planned:
    """A tensor of a file that will be written."""

    entry: Entry
    part: str
    """The part that it belongs to, for messages."""
    make: Callable[[], torch.Tensor]
    """Returns the tensor in any type."""
    forget: Callable[[], None] = lambda: None
    """Releases the memory that `make` used."""

    def tensor(self) -> torch.Tensor:
        """Return the tensor in the type and shape of its entry.

        Raises:
            ModelError: it contains NaN, infinity or numbers that the type cannot hold.
        """
        made = self.make()
        if made.is_floating_point() and self.entry.dtype.is_floating_point:
            self._check(largest_magnitude(made))
        elif made.dtype != self.entry.dtype:
            fix = "Choose another copy of this model."
            raise ModelError(f"cannot be used as a weight: its type is {made.dtype}", subject=self.entry.name, fix=fix)
        return made.to(self.entry.dtype).reshape(self.entry.shape)

    def _check(self, largest: float) -> None:
        if largest == float("inf"):
            raise ModelError(
                f"this tensor of the {self.part} contains NaN or infinity",
                where=self.entry.name,
                fix="If it was trained here, training has diverged: export an earlier checkpoint, and train with a "
                "lower learning rate.",
            )
        if largest > LARGEST.get(self.entry.dtype, float("inf")):
            raise ModelError(
                f"this tensor of the {self.part} contains {largest:.3g}, and the largest number of fp16 is 65504",
                where=self.entry.name,
                fix="Write it as fp32 or bf16.",
            )


def largest_magnitude(tensor: torch.Tensor) -> float:
    """Return the largest absolute value of a tensor; infinity if it contains NaN."""
    if not tensor.numel():
        return 0.0
    # One pass without a copy; NaN comes through as either end.
    least, most = (float(end) for end in torch.aminmax(tensor))
    return max(-least, most) if least <= most else float("inf")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished, verified export."""

    path: Path
    bytes: int
    sha256: str
    tensors: int


def export_model(
    parts: Mapping[str, Path],
    target: Path,
    *,
    dtype: Precision,
    metadata: Mapping[str, str],
    family: str = "sd1",
    base: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export the model made of `parts` to `target` and verify the file.

    Beside a Stable Diffusion 2.x a `.yaml` file specifies the prediction type, see `write_yaml`.

    Args:
        parts: the safetensors file of each part of the family, in diffusers naming, of any precision: of a base model
            folder or of a training checkpoint.
        target: ends in `.safetensors` or `.ckpt`; replaced only by a verified file.
        dtype: precision of every weight.
        metadata: written to a `.safetensors` header; a `.ckpt` has none. For a Stable Diffusion 2.x without
            `modelspec.prediction_type`, epsilon or v, the UNet is probed, see `probe_unet`.
        family: a name that `layout_of` knows.
        base: folder of the base model, into whose weights adapters among the parts are merged.
        progress: called with (done, total); a tensor counts once when written and once when read back.

    Raises:
        ModelError: a source lacks tensors, has unknown ones, or contains NaN or numbers that the precision cannot hold;
            the file read back differs from what was written.
        StorageError: the target cannot be written.
    """
    files = {part: _open_part(part, path, base) for part, path in parts.items()}
    plan = plan_from_parts(layout_of(family), files, DTYPES[dtype])
    done = write_model(plan, target, metadata, progress)
    if family == "sd2":
        kinds = {"epsilon": "epsilon", "v": "v_prediction"}
        kind = kinds.get(metadata.get("modelspec.prediction_type", "")) or probe_unet(files["unet"]).kind
        write_yaml(target, {planned.entry.name: planned.entry.shape for planned in plan}, kind)
    return done


def write_model(
    plan: Sequence[Planned], target: Path, metadata: Mapping[str, str], progress: Progress | None = None
) -> Exported:
    """Write planned tensors to a `.safetensors` or `.ckpt` file and verify it; see `export_model`.

    Raises:
        ModelError, StorageError: see `export_model`.
    """
    if target.suffix not in ENDINGS:
        raise ModelError("is no name for a model file", subject=target, fix="Choose a name in .safetensors or .ckpt.")
    if not target.parent.is_dir():
        raise StorageError("there is no such folder", where=target.parent, fix="Make the folder, or choose another.")
    count = _counter(progress, 2 * len(plan))
    entries = [planned.entry for planned in plan]
    with writing(target) as beside:
        if target.suffix == ".ckpt":
            written = write_ckpt(beside, entries, _made(plan, count))
        else:
            written = write_safetensors(beside, entries, _made(plan, count), {"format": "pt", **metadata})
        flush(beside)
        read_back(beside, written, lambda name: count() if name else None)
        _check_described(beside, plan)
    return Exported(path=target, bytes=written.bytes, sha256=written.sha256, tensors=len(plan))


def _open_part(part: str, path: Path, base: Path | None) -> TensorFile:
    opened = open_tensors(path)
    if base is None or not is_adapter(opened.tensors):
        return opened
    return MergedFile.of(open_tensors(weight_file(base, part)), part, [read_adapter(opened)])


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return a function that reports another finished tensor at each call."""
    numbers = iter(range(1, total + 1))

    def count() -> None:
        done = next(numbers)
        if progress is not None:
            progress(done, total)

    return count


def _made(plan: Sequence[Planned], count: Callable[[], None]) -> Iterator[torch.Tensor]:
    """Yield the tensors of a file; each is counted and released when the next is requested."""
    for planned in plan:
        yield planned.tensor()
        planned.forget()
        count()


def _check_described(path: Path, plan: Sequence[Planned]) -> None:
    """Check that a file contains the planned tensors and nothing else.

    Raises:
        ModelError: it does not; the message names the first tensor that differs.
    """
    try:
        file = open_tensors(path)
    except ModelError as error:
        raise ModelError(f"the export is damaged: {error.what}", where=path, fix=AGAIN) from error
    expected = {planned.entry.name for planned in plan}
    if file.tensors.keys() != expected:
        name = min(file.tensors.keys() ^ expected)
        what = f"the export {'lacks the' if name in expected else 'has the unexpected'} tensor {name}"
        raise ModelError(what, where=path, fix=AGAIN)
    for planned in plan:
        name, dtype, shape = planned.entry.name, str(planned.entry.dtype).removeprefix("torch."), planned.entry.shape
        info = file.tensors[name]
        if (info.dtype, info.shape) != (dtype, shape):
            what = f"{name} is {info.dtype} {list(info.shape)}, not {dtype} {list(shape)}"
            raise ModelError(what, where=path, fix=AGAIN)
    if file.neutralised:
        raise ModelError(f"the export contains {file.neutralised[0]}, which is no tensor", where=path, fix=AGAIN)


# Plans: the tensors of a file, before any is read.


def plan_from_parts(
    layout: Layout, parts: Mapping[str, TensorFile], dtype: torch.dtype, *, vae: TensorFile | None = None
) -> list[Planned]:
    """Plan the original file of a model from its parts in diffusers naming.

    Args:
        vae: an autoencoder that replaces that of the parts, in either layout.

    Raises:
        ModelError: a part lacks a tensor, or has an unknown one.
    """
    planned = []
    for move in layout.to_original({part: _shapes(file) for part, file in parts.items()}):
        file = parts[move.line.part]
        entry = Entry(move.line.original, dtype, move.shapes[0])
        planned.append(Planned(entry, move.line.part, _join(move, file), file.forget))
    return _complete(layout, planned, vae, dtype)


def plan_from_file(
    layout: Layout, file: TensorFile, dtype: torch.dtype, *, averaged: bool = False, vae: TensorFile | None = None
) -> list[Planned]:
    """Plan the original file of a model from another file, without tensors that only training used.

    Args:
        averaged: take the running averages (EMA) of the UNet's weights instead of the weights.
        vae: an autoencoder that replaces that of the file, in either layout.

    Raises:
        ModelError: the file lacks a tensor or has an unknown one, or has no running averages.
    """
    planned = []
    for move in layout.to_diffusers(_shapes(file)):
        # A matrix may be stored as a convolution of one pixel and the other way round: the layout's shape counts.
        entry = Entry(move.line.original, dtype, move.line.original_shape(*move.shapes))
        read = _read(file, _stored(move, file, averaged=averaged))
        planned.append(Planned(entry, move.line.part, read, file.forget))
    return _complete(layout, planned, vae, dtype)


def plan_parts(
    layout: Layout, file: TensorFile, dtype: torch.dtype, *, averaged: bool = False
) -> dict[str, list[Planned]]:
    """Plan the parts of a diffusers folder from an original file, each in the order of its names.

    Raises:
        ModelError: see `plan_from_file`.
    """
    parts: dict[str, list[Planned]] = {part: [] for part in layout.parts}
    for move in layout.to_diffusers(_shapes(file)):
        stored = _stored(move, file, averaged=averaged)
        for number, (name, shape) in enumerate(zip(move.line.names, move.shapes, strict=True)):
            make = _split(move, file, stored, number)
            parts[move.line.part].append(Planned(Entry(name, dtype, shape), move.line.part, make, file.forget))
    return {part: sorted(planned, key=lambda tensor: tensor.entry.name) for part, planned in parts.items()}


def _complete(layout: Layout, planned: list[Planned], vae: TensorFile | None, dtype: torch.dtype) -> list[Planned]:
    """Replace the autoencoder, add position numbers and sort by name."""
    if vae is not None:
        planned = [tensor for tensor in planned if tensor.part != "vae"] + _plan_vae(layout, vae, dtype)
    # Position numbers come first: wider types before narrower ones keep the data aligned.
    positions = [_plan_positions(key, planned) for key in layout.position_ids]
    return [*positions, *sorted(planned, key=lambda tensor: tensor.entry.name)]


def _plan_vae(layout: Layout, file: TensorFile, dtype: torch.dtype) -> list[Planned]:
    """Plan an autoencoder from a file in either layout; the prefix of an original file is optional."""
    lines = [line for line in layout.lines.values() if line.part == "vae"]
    if any(".down_blocks." in name for name in file.tensors):
        names = layout.known("vae", file.tensors)
        stored = {line.original: names.get(line.names[0]) for line in lines}
    else:
        prefix = f"{VAE_ROOT}."
        names = {name.removeprefix(prefix): name for name in file.tensors}
        stored = {line.original: names.get(line.original.removeprefix(prefix)) for line in lines}
    planned = []
    for line in lines:
        name = stored[line.original]
        if name is None:
            what = f"lacks tensors of the autoencoder of a {layout.title}, among them {line.original}"
            raise ModelError(what, subject=file.path, fix="Give the file of an autoencoder.")
        shape = line.original_shape(file.tensors[name].shape)
        planned.append(Planned(Entry(line.original, dtype, shape), "vae", _read(file, name), file.forget))
    return planned


def _plan_positions(key: str, planned: Sequence[Planned]) -> Planned:
    table = key.removesuffix("position_ids") + "position_embedding.weight"
    tokens = next(tensor.entry.shape[0] for tensor in planned if tensor.entry.name == table)
    return Planned(Entry(key, torch.int64, (1, tokens)), "text_encoder", lambda: torch.arange(tokens)[None])


def _stored(move: Move, file: TensorFile, *, averaged: bool) -> str:
    """Return the name of a tensor in the file: of the weight, or of its running average."""
    if not averaged or move.line.part != "unet":
        return move.stored[0]
    name = ema_key(move.line.original)
    if name not in file.tensors:
        raise ModelError("has no running averages (EMA)", subject=file.path, fix="Convert it without --ema.")
    return name


def _shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in file.tensors.items()}


def _join(move: Move, file: TensorFile) -> Callable[[], torch.Tensor]:
    return lambda: move.line.join(*(file.read(name) for name in move.stored))


def _read(file: TensorFile, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.read(name)


def _split(move: Move, file: TensorFile, stored: str, number: int) -> Callable[[], torch.Tensor]:
    return lambda: move.line.split(file.read(stored))[number]
