"""What a run will need on the session's disk, told before it begins: from sizes in headers, without torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import UNFINISHED, Checkpoint, complete, own
from fastdb.checkpoints.progress import STAGES, is_joint, steps_of
from fastdb.checkpoints.retention import KEEP
from fastdb.config import Config
from fastdb.errors import CheckpointError, StorageError
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_info import TensorInfo
from fastdb.images.photos import photos_in
from fastdb.models.diffusers_folder import PARTS, weight_file
from fastdb.reporting import format_bytes
from fastdb.runtime.paths import work_folder
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.delete import bytes_of

BLOCK = 256
"""Weights that share one scale in bitsandbytes' 8-bit moments (Dettmers et al. 2022, section 2.1)."""
SMALL = 4096
"""Weights below which a tensor's moments stay in 32 bits there."""
NAMES = 110
"""Bytes of a tensor's entry in a safetensors header."""
PACKED_WEIGHTS, PACKED_MOMENTS = 0.72, 0.9
"""What is left of weights and of moments when a checkpoint is published, at most in what was measured
(benchmarks/RESULTS.md, "Exact state in little room": SD 1.5's UNet 0.57 and 0.69, small models up to these)."""


@dataclass(frozen=True)
class Weights:
    """What a part's header says of its weights."""

    tensors: tuple[int, ...]
    """Weights of each tensor."""

    @property
    def count(self) -> int:
        """Weights in all."""
        return sum(self.tensors)

    def file(self, bytes_each: int) -> int:
        """Bytes of a safetensors file with them."""
        return self.count * bytes_each + len(self.tensors) * NAMES

    def moments(self, optimizer: str) -> int:
        """Bytes of the optimizer's state: two moments a weight."""
        if optimizer == "adamw":
            return self.count * 8 + len(self.tensors) * (4 + 3 * NAMES)
        small = sum(count for count in self.tensors if count < SMALL)
        large = self.count - small
        tables = sum(2 * 256 * 4 for count in self.tensors if count >= SMALL)
        return small * 8 + large * 2 + 2 * 4 * large // BLOCK + tables + len(self.tensors) * 6 * NAMES


@dataclass(frozen=True)
class Need:
    """Bytes on the session's disk, and `here` on this machine's."""

    here: dict[str, int]
    """One checkpoint as it is saved, of each stage that still has steps to go, by the stage's name."""
    checkpoints: dict[str, int]
    """The same as it is published, about."""
    first: int
    """The least: the class images that are missing and one checkpoint of each of these stages."""
    most: int
    """All that will lie there at once beside what is there now: checkpoints that are kept, one more while it is
    written, and the export."""
    optimizer: str
    """Whose moments were counted."""


def need(session: Session, base: Path, restart: bool = False, from_step: int | None = None) -> Need:
    """What the run that begins now needs; `restart` says that it will not go on from the checkpoints, `from_step` that
    it will from none of the UNet stage after that step.

    Raises:
        ModelError: the base model's weights cannot be read.
    """
    config, weights = session.config, {part: weights_of(base, part) for part in PARTS}
    images, last = _class_images(session), config.checkpoints.keep_last
    here, each, kept, peak, optimizer = {}, {}, 0, 0, _optimizer(config, [])
    for stage in STAGES:
        until = from_step if stage == "unet" else None
        lineage = session.record.lineage
        there = [] if restart else own(session.checkpoints, stage, lineage, until)
        anywhere = [] if restart else own(session.checkpoint_folders, stage, lineage, until)
        done, steps = (anywhere[-1].step if anywhere else 0), steps_of(session, stage)
        if done >= steps:
            continue
        optimizer = _optimizer(config, there)
        here[stage] = checkpoint_bytes(config, stage, weights, optimizer)
        each[stage] = published_bytes(config, stage, weights, optimizer)
        before, milestones = min(len(there), last), _milestones(config, done, steps)
        peak = max(peak, kept + each[stage] * (min(before + steps - done, last + 1) - before + milestones))
        kept += each[stage] * (min(before + steps - done, last) - before + milestones)
    if not each:
        return Need({}, {}, 0, 0, optimizer)
    # Both kinds of file, in half precision.
    export = 2 * sum(one.file(2) for one in weights.values())
    first = images + sum(each[stage] for stage in each)
    return Need(here, each, first, max(first, images + max(peak, kept + export)), optimizer)


def check_space(session: Session, base: Path, restart: bool = False, from_step: int | None = None) -> str:
    """Refuse a run whose first checkpoints do not fit on the disk; returns a line of advice where space is tight.

    What lies there is counted as it is: checkpoints to go on from are not needed again, the rest of a killed trainer
    gives its space back.

    Raises:
        StorageError: with the numbers, and what to do.
        ModelError: the base model's weights cannot be read.
    """
    needed = need(session, base, restart, from_step)
    _check_here(session, needed)
    with explained(session.path):
        rest = sum(bytes_of(path) for path in session.checkpoints.glob(f"{UNFINISHED}*"))
        free = shutil.disk_usage(session.path).free + rest
    stages = ", ".join(f"{stage} {format_bytes(count)}" for stage, count in needed.checkpoints.items())
    ways = _ways(session, needed)
    if free < needed.first:
        raise StorageError(
            f"the first checkpoints need {format_bytes(needed.first)} ({stages}), "
            f"and {format_bytes(free)} are free on its disk",
            where=session.name,
            fix=f"{ways[0].upper()}{ways[1:]}.",
        )
    if free < needed.most:
        return (
            f"space is tight: up to {format_bytes(needed.most)} needed with the export (a checkpoint: {stages}), "
            f"and {format_bytes(free)} are free; {ways}"
        )
    return ""


def _check_here(session: Session, needed: Need) -> None:
    """Refuse a run whose checkpoints do not even fit on this machine's disk, where they are saved first.

    Raises:
        StorageError: with the numbers, and what to do.
    """
    here = work_folder(session.path)
    make_folder(here)
    with explained(here):
        rest = sum(bytes_of(path) for path in session.local_checkpoints.glob(f"{UNFINISHED}*"))
        free = shutil.disk_usage(here).free + rest
        # Two of the largest: the one training can go on from stays while the next is written.
        wanted = 2 * max(needed.here.values(), default=0)
        if os.stat(here).st_dev == os.stat(session.path).st_dev:
            wanted += needed.first
    if free < wanted:
        raise StorageError(
            f"checkpoints are saved on this machine first, which needs {format_bytes(wanted)}, "
            f"and {format_bytes(free)} are free there",
            where=here,
            fix="Free some (fastdb free --models), or name a folder on a larger disk in FASTDB_CACHE.",
        )


def checkpoint_bytes(config: Config, stage: str, weights: dict[str, Weights], optimizer: str) -> int:
    """Bytes of one checkpoint of a stage: weights in single precision, moments, and the average where one is kept."""
    return sum(_weights_and_moments(config, stage, weights, optimizer))


def published_bytes(config: Config, stage: str, weights: dict[str, Weights], optimizer: str) -> int:
    """Bytes of the same when it is published, by what such files were packed to: rather too many than too few."""
    plain, moments = _weights_and_moments(config, stage, weights, optimizer)
    return int(plain * PACKED_WEIGHTS + moments * PACKED_MOMENTS)


def _weights_and_moments(config: Config, stage: str, weights: dict[str, Weights], optimizer: str) -> tuple[int, int]:
    parts = ["unet", "text_encoder"] if stage == "unet" and is_joint(config) else [stage]
    plain = sum(weights[part].file(4) for part in parts)
    plain += weights["unet"].file(4) if stage == "unet" and config.unet.ema_decay else 0
    return plain, sum(weights[part].moments(optimizer) for part in parts)


def weights_of(base: Path, part: str) -> Weights:
    """The weights of a part of a base model, counted by the header of its file.

    Raises:
        ModelError: it cannot be read.
        StorageError: the disk fails.
    """
    tensors = open_tensors(weight_file(base, part)).tensors
    return Weights(tuple(_count(info) for name, info in tensors.items() if not name.endswith("position_ids")))


def _count(info: TensorInfo) -> int:
    count = 1
    for length in info.shape:
        count *= length
    return count


def _milestones(config: Config, done: int, steps: int) -> int:
    """How many checkpoints of the steps to come stay for good beside the newest ones."""
    every = config.checkpoints.keep_every
    return (steps - 1) // every - done // every if every else 0


def _optimizer(config: Config, there: list[Checkpoint]) -> str:
    """The optimizer of a stage: what its checkpoints `there` began with, or as far as it can be told without torch."""
    if config.optimizer.name != "auto":
        return config.optimizer.name
    for checkpoint in reversed(there):
        try:
            return str(checkpoint.state["host"]["optimizer"])
        except (CheckpointError, KeyError, TypeError):
            continue
    gpu = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").is_dir()
    return "adamw8bit" if gpu and importlib.util.find_spec("bitsandbytes") else "adamw"


def _class_images(session: Session) -> int:
    """Bytes of the class images that will be made: as large as those that are there, else about 2 bytes a pixel."""
    there = photos_in(session.class_images) if session.class_images.is_dir() else []
    missing = session.config.prior.class_images - len(there)
    if missing <= 0:
        return 0
    mean = sum(map(bytes_of, there)) // len(there) if there else 2 * session.config.resolution**2
    return missing * mean


def _ways(session: Session, needed: Need) -> str:
    """What can be done about it, as an order: only what a run may still change."""
    ways = [f"free some: fastdb free {session.name}"]
    begun = any(complete(session.checkpoints, stage) for stage in needed.checkpoints)
    if needed.optimizer == "adamw" and not begun:
        ways.append("on a GPU set optimizer.name=adamw8bit (2 bytes a weight instead of 8)")
    if session.config.unet.ema_decay and not begun:
        ways.append("set unet.ema_decay=0")
    if session.config.checkpoints.keep_every:
        ways.append("keep fewer with checkpoints.keep_every=0")
    if session.config.checkpoints.keep_last > KEEP:
        ways.append(f"keep fewer with checkpoints.keep_last={KEEP}")
    return ", or ".join(ways)
