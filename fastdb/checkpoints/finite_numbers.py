"""Search for NaN and infinite numbers in checkpoints of earlier versions, which saved them unseen."""

from __future__ import annotations

from pathlib import Path

from fastdb.checkpoints.checkpoint import AVERAGE, FINITE, PACKED, RAW, Checkpoint, Fault, tensors_file
from fastdb.checkpoints.compressed_checkpoint import open_packed
from fastdb.checkpoints.progress import STAGES
from fastdb.errors import CheckpointError, ModelError
from fastdb.formats.reader import open_tensors


def not_finite(base_folder: Path) -> Fault:
    """Return a check that returns why a checkpoint's weights are useless, or "".

    Checkpoints that were searched when they were saved are not read.

    Args:
        base_folder: folder of the session's base model, to which compressed weights are differences.
    """

    def fault(checkpoint: Checkpoint) -> str:
        if checkpoint.state.get(FINITE) is True:
            return ""
        for part in STAGES:
            for ending in (RAW, f"{AVERAGE}{RAW}"):
                path = tensors_file(checkpoint, f"{part}{ending}")
                try:
                    if path is not None and (tensor := _first_in(path, base_folder)):
                        return f"{tensor} in {path.name} contains NaN or infinite numbers"
                except (CheckpointError, ModelError):
                    # Loading the weights raises it again, with a remedy.
                    return ""
        return ""

    return fault


def _first_in(path: Path, base_folder: Path) -> str:
    """Return the name of the first tensor of a file that contains numbers which are not finite, or ""."""
    import numpy as np

    opened = open_packed(path, base_folder) if path.suffix == PACKED else open_tensors(path)
    for name, info in opened.tensors.items():
        if "float" in info.dtype and not np.isfinite(opened.numbers(name).values).all():
            return name
    return ""
