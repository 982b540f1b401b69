"""A checkpoint's packed form: each of its files with tensors in little room, from which the raw one comes back exactly.

Of `unet.safetensors` it makes `unet.packed`. Weights are differences to the base model's, a running average is one to
the weights beside it, which it follows closely, and the optimizer's state stands by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.checkpoints.checkpoint import Checkpoint
from fastdb.checkpoints.compressed_index import Origin
from fastdb.checkpoints.compressed_reader import OLDER, Base, Packed
from fastdb.checkpoints.compressed_writer import write_packed
from fastdb.checkpoints.progress import AVERAGE, PACKED, RAW, STAGES, tensors_file
from fastdb.errors import CheckpointError, ModelError
from fastdb.formats.hashing_writer import Pace, Sink
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.formats.safetensors_file import WRITTEN, build_header
from fastdb.formats.tensor_bits import Numbers
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.layouts.layout import modern_name
from fastdb.storage.atomic_write import explained, flush
from fastdb.storage.manifest import hashes_in

if TYPE_CHECKING:
    import torch

PUT_BACK = "Put back the base model this session began with."
BLOCK = 1 << 20


def fill(
    local: Checkpoint, hidden: Path, base_folder: Path, *, threads: int = 1, pace: Pace | None = None
) -> dict[str, str]:
    """Write the packed form of a raw checkpoint's files; for `checkpoints.save`, which writes the rest beside them.

    Args:
        local: a checkpoint that has verified. What its manifest says is held against what is read here once more.
        hidden: the folder to write into.
        base_folder: of the base model the session began with.
        threads: that code at the same time, about 100 MB each; the files are the same for any number.
        pace: told of bytes as they go out; see `Sink`.

    Returns:
        The SHA-256 of what was meant to be written, by the file's name.

    Raises:
        CheckpointError: a file is not what the manifest says.
        ModelError: it is no safetensors file, or the base model cannot be read.
        StorageError: a disk is full, failing or gone.
    """
    meant = {}
    for name, digest in hashes_in(local.path).items():
        if not name.endswith(RAW):
            continue
        raw = open_tensors(local.path / name)
        target = hidden / name
        if _is_plain(raw):
            target = target.with_suffix(PACKED)
            meant[target.name] = _pack(raw, digest, target, _base_for(raw, base_folder), threads, pace)
        else:
            meant[name] = _copy(raw.path, target, pace)
        with explained(target):
            flush(target)
    return meant


def open_packed(path: Path, base_folder: Path, *, threads: int = 1) -> Packed:
    """Open a packed file of a checkpoint with what its differences are to.

    Raises:
        CheckpointError: it is damaged, or differs from another base model than that in `base_folder`.
        ModelError: there is no such base model.
        StorageError: a disk fails.
    """
    packed = Packed.open(path, threads=threads)
    if packed.base_sha256 is None:
        return packed
    part = path.stem.removesuffix(AVERAGE)
    beside = path.with_name(part + PACKED)
    if path != beside and beside.is_file():
        weights = open_packed(beside, base_folder, threads=threads)
        if weights.origin is not None and weights.origin.sha256 == packed.base_sha256:
            known = {name: partial(weights.numbers, name) for name in weights.names}
            return Packed.open(path, Base(weights.origin.sha256, known), threads=threads)
    return Packed.open(path, _base(part, base_folder, packed.names, packed.path), threads=threads)


def tensors_of(checkpoint: Checkpoint, name: str, base_folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the file that a raw checkpoint calls `name`, of its raw or its packed form.

    Raises:
        CheckpointError: the checkpoint has no such file, or it is packed and damaged.
        ModelError: it is packed, and there is no base model in `base_folder`.
        StorageError: the disk fails.
    """
    path = tensors_file(checkpoint, name)
    if path is None:
        raise CheckpointError(f"it has no {name}", where=checkpoint.path, fix=OLDER)
    if path.suffix != PACKED:
        from safetensors.torch import load_file  # imports torch, which packing does without

        with explained(path):
            return load_file(path)
    return dict(open_packed(path, base_folder).items())


def origin_of(path: Path) -> Origin:
    """What a packed file says of the raw one it was made of.

    Raises:
        CheckpointError: it is damaged, or does not say it.
        StorageError: the disk fails.
    """
    origin = Packed.open(path).origin
    if origin is None:
        raise CheckpointError("does not say which file was packed", where=path, fix=OLDER)
    return origin


def raw_sha256(path: Path) -> str:
    """The SHA-256 that a file of a verified checkpoint has in its raw form, in hex: the same for both forms.

    Raises:
        CheckpointError, StorageError: see `origin_of`.
    """
    return origin_of(path).sha256 if path.suffix == PACKED else hashes_in(path.parent)[path.name]


def _is_plain(raw: TensorFile) -> bool:
    """Whether a file is, to the byte, what our writer would make of its tensors and metadata."""
    if not all(info.dtype in WRITTEN for info in raw.tensors.values()):
        return False
    head = build_header(raw.tensors, raw.metadata)
    with explained(raw.path), raw.path.open("rb") as file:
        return file.read(len(head)) == head and raw.length == len(head) + sum(
            info.nbytes for info in raw.tensors.values()
        )


def _pack(raw: TensorFile, digest: str, target: Path, base: Base | None, threads: int, pace: Pace | None) -> str:
    seen = hashlib.sha256(build_header(raw.tensors, raw.metadata))

    def tensors() -> Iterator[tuple[str, Numbers]]:
        for name in raw.tensors:
            numbers = raw.numbers(name)
            seen.update(numbers.bits.data)
            yield name, numbers
            del numbers
            raw.forget()

    origin = Origin(raw.length, digest, raw.metadata)
    beside = {name: partial(raw.numbers, name) for name in raw.tensors}
    written = write_packed(target, tensors(), base=base, beside=beside, origin=origin, threads=threads, pace=pace)
    if seen.hexdigest() != digest:
        raise CheckpointError("has changed since it was written", where=raw.path, fix=OLDER)
    return written.sha256


def _copy(source: Path, target: Path, pace: Pace | None) -> str:
    """Copy a file that our writer did not make: it could not be made again to the byte out of its tensors."""
    with explained(target), source.open("rb") as file, Sink(target, pace) as sink:
        while block := file.read(BLOCK):
            sink.write(block)
        return sink.finish().sha256


def _base_for(raw: TensorFile, base_folder: Path) -> Base | None:
    """What the tensors of a raw checkpoint's file become differences to."""
    part = raw.path.stem.removesuffix(AVERAGE)
    if part not in STAGES:
        return None
    beside = raw.path.with_name(part + RAW)
    hashes = hashes_in(raw.path.parent)
    if beside != raw.path and beside.name in hashes:
        return Base.of(beside, digest=hashes[beside.name])
    return _base(part, base_folder, raw.tensors, raw.path)


def _base(part: str, base_folder: Path, names: Iterable[str], wanted_by: Path) -> Base:
    """The base model's weights of a part, by the names that a checkpoint has for them.

    Raises:
        ModelError: they are not there, or cannot be read.
    """
    if not (base_folder / part).is_dir():
        raise ModelError(
            f"the base model is not there, and {wanted_by.name} is a difference to it",
            where=base_folder,
            fix=PUT_BACK,
        )
    base = Base.of(weight_file(base_folder, part), partial(modern_name, part))
    modern = {name: modern_name(part, name) for name in names}
    return replace(base, tensors={name: base.tensors[new] for name, new in modern.items() if new in base.tensors})
