"""A trained model as one file that other programs load: `.safetensors` or `.ckpt` in the original layout.

An export is a pure function of its weight files. It is written beside its place tensor by tensor, read back from the
disk byte by byte, described by the reader that trusts nothing, and only then renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastdb.errors import ModelError, StorageError
from fastdb.formats.ckpt_writer import write_ckpt
from fastdb.formats.hashing_writer import AGAIN, Written, read_back
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.formats.safetensors_writer import write_safetensors
from fastdb.models.layouts.families import layout_of
from fastdb.models.ldm_yaml import write_config
from fastdb.models.prediction import ask_unet, told
from fastdb.models.tensor_plan import DTYPES, Planned, from_parts, opened
from fastdb.storage.atomic_write import flush, writing

Precision = Literal["fp16", "bf16", "fp32"]
Progress = Callable[[int, int], None]

ENDINGS = (".safetensors", ".ckpt")


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
    progress: Progress | None = None,
) -> Exported:
    """Write the model made of `parts` to `target` in the original layout of its family, and verify it.

    Beside an SD 2.x a `.yaml` says what its UNet predicts: see `ldm_config`.

    Args:
        parts: the safetensors file of each part of the family, in diffusers naming, of any precision: of a base model
            folder or of a training checkpoint.
        target: ends in `.safetensors` or `.ckpt`; replaced only by a verified file.
        dtype: precision of every weight.
        metadata: kept in a `.safetensors` header; a `.ckpt` has no place for it. Of an SD 2.x it should say
            `modelspec.prediction_type`, epsilon or v; else the UNet is asked, see `prediction`.
        family: one that `layout_of` knows.
        progress: called with (done, total); a tensor counts once when written and once when read back.

    Raises:
        ModelError: a source lacks tensors, has unknown ones, or holds NaN or what the precision cannot hold; what was
            read back differs from what was written.
        StorageError: the target cannot be written.
    """
    plan = from_parts(layout_of(family), opened(parts), DTYPES[dtype])
    done = write_model(plan, target, metadata, progress)
    if family == "sd2":
        said = metadata.get("modelspec.prediction_type")
        kind, _ = told(target, said) if said else ask_unet(parts["unet"])
        write_config(target, {planned.entry.name: planned.entry.shape for planned in plan}, kind)
    return done


def write_model(
    plan: Sequence[Planned], target: Path, metadata: Mapping[str, str], progress: Progress | None = None
) -> Exported:
    """Write planned tensors to `target`, whose ending says the kind of file, and verify it; see `export_model`.

    Raises:
        ModelError, StorageError: see `export_model`.
    """
    if target.suffix not in ENDINGS:
        raise ModelError("a model file ends in .safetensors or .ckpt", where=target, fix="Give it one of these.")
    if not target.parent.is_dir():
        raise StorageError("there is no such folder", where=target.parent, fix="Make the folder, or choose another.")
    steps = Steps(progress, 2 * len(plan))
    entries = [planned.entry for planned in plan]
    with writing(target) as beside:
        if target.suffix == ".ckpt":
            written = write_ckpt(beside, entries, made(plan, steps))
        else:
            written = write_safetensors(beside, entries, made(plan, steps), {"format": "pt", **metadata})
        flush(beside)
        verify(beside, plan, written, steps)
    return Exported(path=target, bytes=written.bytes, sha256=written.sha256, tensors=len(plan))


class Steps:
    """Counts tensors for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def step(self) -> None:
        """Count one."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def made(plan: Sequence[Planned], steps: Steps) -> Iterator[torch.Tensor]:
    """The tensors of a file one after the other; each is counted, and forgotten, when the next is asked for."""
    for planned in plan:
        yield planned.tensor()
        planned.forget()
        steps.step()


def verify(path: Path, plan: Sequence[Planned], written: Written, steps: Steps) -> None:
    """Every byte is what was meant, and a reader that trusts nothing finds the tensors that were planned.

    Raises:
        ModelError: that is not so; the message names the tensor.
    """
    read_back(path, written, lambda name: steps.step() if name else None)
    check_described(path, plan)


def check_described(path: Path, plan: Sequence[Planned]) -> TensorFile:
    """Describe a file by the reader that trusts nothing: it must hold the planned tensors, and nothing else.

    Raises:
        ModelError: it does not; the message names the first tensor that differs.
    """
    try:
        found = open_tensors(path)
    except ModelError as error:
        raise ModelError(f"the export is damaged: it {error.what}", where=path, fix=AGAIN) from error
    expected = {planned.entry.name for planned in plan}
    if found.tensors.keys() != expected:
        stray = min(found.tensors.keys() ^ expected)
        what = f"the export {'lacks the' if stray in expected else 'has a surplus'} tensor {stray}"
        raise ModelError(what, where=path, fix=AGAIN)
    for planned in plan:
        name, wanted = planned.entry.name, (str(planned.entry.dtype).removeprefix("torch."), planned.entry.shape)
        info = found.tensors[name]
        if (info.dtype, info.shape) != wanted:
            what = f"{name} is {info.dtype} {list(info.shape)}, not {wanted[0]} {list(wanted[1])}"
            raise ModelError(what, where=path, fix=AGAIN)
    if found.neutralised:
        raise ModelError(f"the export names {found.neutralised[0]}, which is no tensor", where=path, fix=AGAIN)
    return found
