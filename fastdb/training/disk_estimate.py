"""Disk space that a run needs, estimated from sizes in headers before it begins."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import UNFINISHED, Checkpoint, complete
from fastdb.checkpoints.progress import STAGES, is_joint, steps_of
from fastdb.checkpoints.retention import KEEP
from fastdb.config import Config
from fastdb.errors import CheckpointError, StorageError
from fastdb.formats.reader import open_tensors
from fastdb.images.photo_files import photos_in
from fastdb.models.diffusers_folder import PARTS, weight_file
from fastdb.reporting import Note, argument, format_bytes
from fastdb.runtime.gpu import has_nvidia_gpu
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.delete import bytes_of
from fastdb.training.methods import Shapes, method_of

_BLOCK = 256
"""Weights that share one scale in bitsandbytes' 8-bit moments (Dettmers et al. 2022, section 2.1)."""
_SMALL = 4096
"""Weights below which bitsandbytes keeps a tensor's moments in 32 bits."""
_HEADER_ENTRY = 110
"""Bytes of a tensor's entry in a safetensors header."""
_COMPRESSED_MOMENTS = 0.9
"""Size of moments in a compressed checkpoint as a part of their raw size; the largest that was measured
(benchmarks/RESULTS.md, "Compressed checkpoints": 0.69 for SD 1.5's UNet)."""

_Weights = tuple[int, ...]
"""The number of weights in each tensor of a part."""


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs.

    Attributes:
        here: of a raw checkpoint on this machine's disk, by the name of each stage that has steps left.
        checkpoints: of the same checkpoint on the session's disk, compressed, estimated from above.
        first: the minimum on the session's disk: missing class images and a checkpoint of each of these stages.
        most: the maximum there beside its present files: kept checkpoints, another while it is written, the export.
        optimizer: whose moments were counted.
    """

    here: dict[str, int]
    checkpoints: dict[str, int]
    first: int
    most: int
    optimizer: str


def need(session: Session, base: Path, restart: bool = False, from_step: int | None = None) -> Need:
    """Return the bytes that a run needs if it begins now.

    Args:
        base: folder of the base model.
        restart: training will not resume from a checkpoint.
        from_step: training will resume from no checkpoint of the UNet stage after that step.

    Raises:
        ModelError: the base model's weights cannot be read.
        StorageError: the disk fails.
    """
    config, shapes = session.config, {part: _shapes_of(base, part) for part in PARTS}
    method = method_of(config)
    trained = {part: method.counts(part, shapes[part]) for part in STAGES}
    images, last = _class_images(session), config.checkpoints.keep_last
    here, each, kept, peak, optimizer = {}, {}, 0, 0, _optimizer(config, [])
    for stage in STAGES:
        until = from_step if stage == "unet" else None
        lineage = session.record.lineages
        published = [] if restart else complete(session.checkpoints, stage, lineage=lineage, until=until)
        anywhere = [] if restart else complete(session.checkpoint_folders, stage, lineage=lineage, until=until)
        done, steps = (anywhere[-1].step if anywhere else 0), steps_of(session, stage)
        if done >= steps:
            continue
        optimizer = _optimizer(config, published)
        here[stage], each[stage] = _checkpoint_bytes(config, stage, trained, optimizer)
        before, milestones = min(len(published), last), _milestones(config, done, steps)
        peak = max(peak, kept + each[stage] * (min(before + steps - done, last + 1) - before + milestones))
        kept += each[stage] * (min(before + steps - done, last) - before + milestones)
    if not each:
        return Need({}, {}, 0, 0, optimizer)
    # Both kinds of file, in half precision.
    export = 2 * _file_bytes(method.exported(shapes), 2)
    first = images + sum(each.values())
    return Need(here, each, first, max(first, images + max(peak, kept + export)), optimizer)


def check_space(session: Session, base: Path, restart: bool = False, from_step: int | None = None) -> Note | None:
    """Raise if a run's first checkpoints do not fit on the disk; return a note if space is tight.

    Checkpoints that exist are not needed again, and those that a killed trainer left unfinished will be deleted. The
    arguments are those of `need`.

    Raises:
        StorageError: the disk of the session or of this machine is too full.
        ModelError: the base model's weights cannot be read.
    """
    needed = need(session, base, restart, from_step)
    _check_here(session, needed)
    with explained(session.path):
        unfinished = sum(bytes_of(path) for path in session.checkpoints.glob(f"{UNFINISHED}*"))
        free = shutil.disk_usage(session.path).free + unfinished
    stages = ", ".join(f"{stage} {format_bytes(count)}" for stage, count in needed.checkpoints.items())
    remedies = _remedies(session, needed)
    if free < needed.first:
        raise StorageError(
            f"the first checkpoints need {format_bytes(needed.first)} ({stages}), "
            f"but its disk has {format_bytes(free)} free",
            where=session.name,
            fix=f"{remedies[0].upper()}{remedies[1:]}.",
        )
    if free < needed.most:
        numbers = (
            f"up to {format_bytes(needed.most)} needed including the export (per checkpoint: {stages}), "
            f"{format_bytes(free)} free"
        )
        return Note("disk space tight", numbers, remedies)
    return None


def _check_here(session: Session, needed: Need) -> None:
    """Raise if checkpoints do not fit on this machine's disk, where they are saved first."""
    here = session.work
    make_folder(here)
    with explained(here):
        unfinished = sum(bytes_of(path) for path in session.local_checkpoints.glob(f"{UNFINISHED}*"))
        free = shutil.disk_usage(here).free + unfinished
        # Two of the largest: the newest is kept while the next is written.
        wanted = 2 * max(needed.here.values(), default=0)
        if os.stat(here).st_dev == os.stat(session.path).st_dev:
            wanted += needed.first
    if free < wanted:
        raise StorageError(
            f"checkpoints are saved on this machine first and need {format_bytes(wanted)} here, "
            f"but its disk has {format_bytes(free)} free",
            where=here,
            fix="Free some (fastdb free --models), or set FASTDB_CACHE to a folder on a larger disk.",
        )


def _checkpoint_bytes(config: Config, stage: str, weights: dict[str, _Weights], optimizer: str) -> tuple[int, int]:
    """Return the bytes of a stage's checkpoint, raw and compressed: weights in float32, moments, and the average."""
    parts = ["unet", "text_encoder"] if stage == "unet" and is_joint(config) else [stage]
    plain = sum(_file_bytes(weights[part], 4) for part in parts)
    plain += _file_bytes(weights["unet"], 4) if stage == "unet" and config.unet.ema_decay else 0
    moments = sum(moment_bytes(weights[part], optimizer) for part in parts)
    return plain + moments, int(plain * method_of(config).compressed + moments * _COMPRESSED_MOMENTS)


def _file_bytes(weights: _Weights, bytes_each: int) -> int:
    return sum(weights) * bytes_each + len(weights) * _HEADER_ENTRY


def moment_bytes(weights: _Weights, optimizer: str) -> int:
    """Return the bytes of the optimizer's state: two moments per weight."""
    total, tensors = sum(weights), len(weights)
    if optimizer == "adamw":
        return total * 8 + tensors * (4 + 3 * _HEADER_ENTRY)
    small = sum(count for count in weights if count < _SMALL)
    large = total - small
    tables = sum(2 * 256 * 4 for count in weights if count >= _SMALL)
    return small * 8 + large * 2 + 2 * 4 * large // _BLOCK + tables + tensors * 6 * _HEADER_ENTRY


def _shapes_of(base: Path, part: str) -> Shapes:
    return {name: info.shape for name, info in open_tensors(weight_file(base, part)).tensors.items()}


def _milestones(config: Config, done: int, steps: int) -> int:
    """Return how many checkpoints of the steps to come are kept for good beside the newest."""
    every = config.checkpoints.keep_every
    return (steps - 1) // every - done // every if every else 0


def _optimizer(config: Config, checkpoints: list[Checkpoint]) -> str:
    """Return the optimizer that a stage began with, else the likely choice as far as it is known without torch."""
    if config.optimizer.name != "auto":
        return config.optimizer.name
    for checkpoint in reversed(checkpoints):
        try:
            return str(checkpoint.state["host"]["optimizer"])
        except (CheckpointError, KeyError, TypeError):
            continue
    return "adamw8bit" if has_nvidia_gpu() else "adamw"


def _class_images(session: Session) -> int:
    """Return the bytes of missing class images: as large as those that exist, else about 2 bytes per pixel."""
    existing = photos_in(session.class_images) if session.class_images.is_dir() else []
    missing = session.config.prior.class_images - len(existing)
    if missing <= 0:
        return 0
    mean = sum(map(bytes_of, existing)) // len(existing) if existing else 2 * session.config.resolution**2
    return missing * mean


def _remedies(session: Session, needed: Need) -> str:
    """Return the remedies as a command; only settings that a run may still change."""
    remedies = [f"free some: fastdb free {argument(session.name)}"]
    begun = any(complete(session.checkpoints, stage) for stage in needed.checkpoints)
    if needed.optimizer == "adamw" and not begun:
        remedies.append("on a GPU set optimizer.name=adamw8bit (2 bytes per weight instead of 8)")
    if session.config.unet.ema_decay and not begun:
        remedies.append("set unet.ema_decay=0")
    if session.config.checkpoints.keep_every:
        remedies.append("keep fewer with checkpoints.keep_every=0")
    if session.config.checkpoints.keep_last > KEEP:
        remedies.append(f"keep fewer with checkpoints.keep_last={KEEP}")
    return ", or ".join(remedies)
