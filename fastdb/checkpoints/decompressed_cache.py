"""Packed weights as raw files again: kept for a while on this machine's own disk, and hashed before each use."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock

from fastdb.checkpoints.compressed_checkpoint import open_packed, origin_of
from fastdb.checkpoints.compressed_index import Origin
from fastdb.checkpoints.compressed_reader import OLDER
from fastdb.checkpoints.progress import PACKED, RAW
from fastdb.errors import CheckpointError, StorageError
from fastdb.formats.hashing_writer import read_back
from fastdb.formats.safetensors_file import Entry, build_header, write_safetensors
from fastdb.reporting import format_bytes
from fastdb.runtime.paths import cache_folder
from fastdb.storage.atomic_write import TEMPORARY, explained, make_folder, writing
from fastdb.storage.manifest import sha256

KEPT = 4
"""Files that stay; the least recently used go first."""
GRACE = 60
"""Seconds in which a file that was asked for is not removed: another process may be about to open it. Once it is open
or mapped, a file that loses its name loses nothing else."""

_given: deque[Path] = deque(maxlen=KEPT)
"""What this process was last given; never removed by it."""


def raw_file(path: Path, base_folder: Path) -> Path:
    """The raw safetensors file of weights: `path` itself, or what it was packed from, equal to it to the byte.

    That lies in the cache, where it may be removed later: read it now, or ask again. Of two processes that ask for
    the same file one makes it.

    Args:
        path: a file of a checkpoint, raw or packed.
        base_folder: of the base model its session began with.

    Raises:
        CheckpointError: it is damaged, or differs from another base model.
        ModelError: there is no such base model.
        StorageError: this machine's disk is full or cannot be written, or the session's fails.
    """
    if path.suffix != PACKED:
        return path
    origin = origin_of(path)
    folder = cache_folder() / "unpacked"
    final = folder / f"{origin.sha256}{RAW}"
    make_folder(folder)
    with explained(final), FileLock(folder / ".lock"):
        if not (final.is_file() and final.stat().st_size == origin.bytes and sha256(final) == origin.sha256):
            final.unlink(missing_ok=True)
            _make_room(folder, origin.bytes)
            _unpack(path, origin, base_folder, final)
        os.utime(final)
        _given.append(final)
    return final


def raw_files(weights: Mapping[str, Path], base_folder: Path) -> dict[str, Path]:
    """The raw safetensors file of each part; see `raw_file`.

    Raises:
        CheckpointError, ModelError, StorageError: see `raw_file`.
    """
    return {part: raw_file(path, base_folder) for part, path in weights.items()}


def _unpack(path: Path, origin: Origin, base_folder: Path, final: Path) -> None:
    packed = open_packed(path, base_folder, threads=min(4, os.cpu_count() or 1))
    entries = [Entry(name, getattr(torch, info.dtype), info.shape) for name, info in packed.tensors.items()]
    length = len(build_header(packed.tensors, origin.metadata)) + sum(info.nbytes for info in packed.tensors.values())
    if length != origin.bytes:
        raise CheckpointError("its tensors do not make the file it says it was made of", where=path, fix=OLDER)
    with writing(final) as beside:
        written = write_safetensors(beside, entries, (tensor for _, tensor in packed.items()), origin.metadata)
        if written.sha256 != origin.sha256:
            raise CheckpointError("its tensors do not make the file it says it was made of", where=path, fix=OLDER)
        read_back(beside, written, lambda _: None)


def _make_room(folder: Path, wanted: int) -> None:
    """Remove what dead processes left, and the least recently used files beyond those that stay, or for which there is
    no room. Only for whoever holds the lock.

    Raises:
        StorageError: what may not go now leaves too little room.
    """
    for rest in folder.glob(f".*{TEMPORARY}"):
        rest.unlink(missing_ok=True)
    # Newest first: the last is the first to go.
    files = sorted(folder.glob(f"*{RAW}"), key=lambda one: one.stat().st_mtime, reverse=True)
    left = len(files)
    for one in reversed(files):
        if left < KEPT and shutil.disk_usage(folder).free >= wanted:
            break
        if one not in _given and not 0 <= time.time() - one.stat().st_mtime < GRACE:
            one.unlink()
            left -= 1
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StorageError(
            f"the disk is full: a checkpoint's weights need {format_bytes(wanted)} to be unpacked, "
            f"and {format_bytes(free)} are free",
            where=folder,
            fix="Free some space on this machine and run the same command again.",
        )
