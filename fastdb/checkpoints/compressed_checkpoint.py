"""Compression of checkpoints, and their raw files in a cache.

Compressing turns `unet.safetensors` into `unet.packed`, from which the raw file can be restored to the byte. Weights
are stored as differences to the base model, a running average as differences to the weights beside it, which it follows
closely, and the optimizer's state by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from fastdb.checkpoints.checkpoint import AVERAGE, PACKED, RAW, Checkpoint, tensors_file
from fastdb.checkpoints.compressed_file import OLDER, Base, Packed, write_packed
from fastdb.checkpoints.compressed_index import Origin
from fastdb.checkpoints.progress import STAGES
from fastdb.errors import CheckpointError, ModelError, StorageError
from fastdb.formats.hashing_writer import Pace, Sink, read_back
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.formats.safetensors_file import WRITTEN, build_header
from fastdb.formats.tensor_bits import Numbers
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.layouts.layout import modern_name
from fastdb.models.lora.adapter import is_adapter
from fastdb.reporting import format_bytes
from fastdb.runtime.paths import cache_folder
from fastdb.storage.atomic_write import TEMPORARY, explained, flush, make_folder, writing
from fastdb.storage.manifest import hashes_in, sha256

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20
KEPT = 4
"""Number of raw files in the cache; the least recently used are deleted first."""
GRACE = 60
"""Seconds for which a requested file stays in the cache, because another process may be about to open it. Once it is
open or mapped, deleting its name is harmless."""

_requested: deque[Path] = deque(maxlen=KEPT)
"""The last files that this process requested, which it does not delete."""


def compress(
    local: Checkpoint, hidden: Path, base_folder: Path, *, threads: int = 1, pace: Pace | None = None
) -> dict[str, str]:
    """Write the compressed form of a raw checkpoint's tensor files; `checkpoint.save` writes the other files.

    Args:
        local: a verified checkpoint. Its files are hashed again while they are read.
        hidden: the folder to write into.
        base_folder: folder of the session's base model.
        threads: number of threads that encode, about 100 MB each; the files do not depend on it.
        pace: called with the bytes that were written; see `Sink`.

    Returns:
        The SHA-256 of each file that was written, by its name.

    Raises:
        CheckpointError: a file does not match the manifest.
        ModelError: a file is not a safetensors file, or the base model cannot be read.
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
            meant[target.name] = _compress_file(raw, digest, target, _base_for(raw, base_folder), threads, pace)
        else:
            meant[name] = _copy(raw.path, target, pace)
        with explained(target):
            flush(target)
    return meant


def open_packed(path: Path, base_folder: Path, *, threads: int = 1) -> Packed:
    """Open a compressed file of a checkpoint together with its base.

    Raises:
        CheckpointError: it is damaged, or refers to another base model than that in `base_folder`.
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
            known = {name: partial(weights.numbers, name) for name in weights.tensors}
            return Packed.open(path, Base(weights.origin.sha256, known), threads=threads)
    return Packed.open(path, _model_base(part, base_folder, packed.tensors, packed.path), threads=threads)


def tensors_of(checkpoint: Checkpoint, name: str, base_folder: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a checkpoint's file, raw or compressed, by the name of its raw form.

    Raises:
        CheckpointError: the checkpoint has no such file, or it is compressed and damaged.
        ModelError: it is compressed, and there is no base model in `base_folder`.
        StorageError: the disk fails.
    """
    path = tensors_file(checkpoint, name)
    if path is None:
        raise CheckpointError(f"it has no {name}", where=checkpoint.path, fix=OLDER)
    if path.suffix != PACKED:
        from safetensors.torch import load_file  # loads torch, which the publisher works without

        with explained(path):
            return load_file(path)
    packed = open_packed(path, base_folder)
    return {name: packed.numbers(name).tensor() for name in packed.tensors}


def raw_sha256(path: Path) -> str:
    """Return the SHA-256, in hex, of the raw form of a verified checkpoint's file.

    Raises:
        CheckpointError: it is compressed, and damaged or without its origin.
        StorageError: the disk fails.
    """
    return _origin_of(path).sha256 if path.suffix == PACKED else hashes_in(path.parent)[path.name]


def raw_files(weights: Mapping[str, Path], base_folder: Path) -> dict[str, Path]:
    """Return the raw safetensors file of each part; see `raw_file`."""
    return {part: raw_file(path, base_folder) for part, path in weights.items()}


def raw_file(path: Path, base_folder: Path) -> Path:
    """Return the raw safetensors file of a checkpoint's file, which is decompressed into the cache if necessary.

    The cache may delete its files later: read them now, or call again. If two processes request the same file, one of
    them creates it.

    Args:
        path: a file of a checkpoint, raw or compressed.
        base_folder: folder of the session's base model.

    Raises:
        CheckpointError: the file is damaged, or refers to another base model.
        ModelError: there is no such base model.
        StorageError: this machine's disk is full or read-only, or the session's disk fails.
    """
    if path.suffix != PACKED:
        return path
    origin = _origin_of(path)
    folder = cache_folder() / "unpacked"
    final = folder / f"{origin.sha256}{RAW}"
    make_folder(folder)
    with explained(final), FileLock(folder / ".lock"):
        if not (final.is_file() and final.stat().st_size == origin.bytes and sha256(final) == origin.sha256):
            final.unlink(missing_ok=True)
            _make_room(folder, origin.bytes)
            _decompress_file(path, origin, base_folder, final)
        os.utime(final)
        _requested.append(final)
    return final


def _decompress_file(path: Path, origin: Origin, base_folder: Path, final: Path) -> None:
    packed = open_packed(path, base_folder, threads=min(4, os.cpu_count() or 1))
    mismatch = CheckpointError("its tensors do not match the checksum of the raw file", where=path, fix=OLDER)
    if unknown := [info.dtype for info in packed.tensors.values() if info.dtype not in WRITTEN]:
        raise CheckpointError(f"a raw file cannot have the type {unknown[0]}", where=path, fix=OLDER)
    head = build_header(packed.tensors, origin.metadata)
    if len(head) + sum(info.nbytes for info in packed.tensors.values()) != origin.bytes:
        raise mismatch
    with writing(final) as beside:
        with Sink(beside) as sink:
            sink.write(head)
            for name in packed.tensors:
                sink.write(packed.numbers(name).bits.data.cast("B") if packed.tensors[name].elements else b"", name)
            written = sink.finish()
        if written.sha256 != origin.sha256:
            raise mismatch
        read_back(beside, written, lambda name: None)


def _make_room(folder: Path, wanted: int) -> None:
    """Delete leftovers of dead processes, and the least recently used files beyond `KEPT` or for lack of space.

    The caller holds the lock of the cache.

    Raises:
        StorageError: the remaining files leave too little space.
    """
    for leftover in folder.glob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    oldest_first = sorted(folder.glob(f"*{RAW}"), key=lambda file: file.stat().st_mtime)
    left = len(oldest_first)
    for file in oldest_first:
        if left < KEPT and shutil.disk_usage(folder).free >= wanted:
            break
        if file not in _requested and not 0 <= time.time() - file.stat().st_mtime < GRACE:
            file.unlink()
            left -= 1
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StorageError(
            f"the disk is full: decompressing a checkpoint's weights needs {format_bytes(wanted)}, "
            f"but only {format_bytes(free)} are free",
            where=folder,
            fix="Free some space on this machine and run the same command again.",
        )


def _origin_of(path: Path) -> Origin:
    origin = Packed.open(path).origin
    if origin is None:
        raise CheckpointError("its index does not name the raw file", where=path, fix=OLDER)
    return origin


def _is_plain(raw: TensorFile) -> bool:
    """Whether our writer would create the same file, to the byte, from its tensors and metadata."""
    if not all(info.dtype in WRITTEN for info in raw.tensors.values()):
        return False
    head = build_header(raw.tensors, raw.metadata)
    with explained(raw.path), raw.path.open("rb") as file:
        return file.read(len(head)) == head and raw.length == len(head) + sum(
            info.nbytes for info in raw.tensors.values()
        )


def _compress_file(
    raw: TensorFile, digest: str, target: Path, base: Base | None, threads: int, pace: Pace | None
) -> str:
    seen = hashlib.sha256(build_header(raw.tensors, raw.metadata))

    def tensors() -> Iterator[tuple[str, Numbers]]:
        for name in raw.tensors:
            numbers = raw.numbers(name)
            seen.update(numbers.bits.data)
            yield name, numbers
            del numbers
            raw.forget()

    origin = Origin(raw.length, digest, raw.metadata)
    written = write_packed(target, tensors(), base=base, origin=origin, threads=threads, pace=pace)
    if seen.hexdigest() != digest:
        raise CheckpointError("has changed since it was written", subject=raw.path, fix=OLDER)
    return written.sha256


def _copy(source: Path, target: Path, pace: Pace | None) -> str:
    """Copy a file of another writer, which could not be restored to the byte from its tensors."""
    with explained(target), source.open("rb") as file, Sink(target, pace) as sink:
        while block := file.read(BLOCK):
            sink.write(block)
        return sink.finish().sha256


def _base_for(raw: TensorFile, base_folder: Path) -> Base | None:
    """Return the base to which the tensors of a raw file are stored as differences, if any."""
    part = raw.path.stem.removesuffix(AVERAGE)
    if part not in STAGES:
        return None
    beside = raw.path.with_name(part + RAW)
    hashes = hashes_in(raw.path.parent)
    if beside != raw.path and beside.name in hashes:
        return Base.of(beside, digest=hashes[beside.name])
    if is_adapter(raw.tensors):
        return None
    return _model_base(part, base_folder, raw.tensors, raw.path)


def _model_base(part: str, base_folder: Path, names: Iterable[str], wanted_by: Path) -> Base:
    """Return the base model's weights of a part by the names of the checkpoint's tensors.

    Raises:
        ModelError: they do not exist or cannot be read.
    """
    if not (base_folder / part).is_dir():
        raise ModelError(
            f"the base model is missing, and {wanted_by.name} is stored as a difference to it",
            where=base_folder,
            fix="Restore the base model that this session started with.",
        )
    base = Base.of(weight_file(base_folder, part), partial(modern_name, part))
    modern = {name: modern_name(part, name) for name in names}
    return replace(base, tensors={name: base.tensors[new] for name, new in modern.items() if new in base.tensors})
