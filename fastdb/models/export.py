"""A trained model as one file that other programs load: `.safetensors` or `.ckpt` in the original layout.

An export is a pure function of three weight files. It is written beside its place, read back and compared bit for bit
with its sources, and only then renamed. Memory: about one tensor at a time; the files are mapped, not loaded.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from fastdb.errors import ModelError, StorageError
from fastdb.models import layout
from fastdb.models.base_model import PARTS
from fastdb.models.ckpt_file import ROOT, write_ckpt
from fastdb.models.safetensors_file import Entry, write_safetensors
from fastdb.storage.durable import explained, writing

Source = Path
"""A safetensors file in diffusers naming, fp32, fp16 or bf16: of a base model folder or of a training checkpoint."""

Precision = Literal["fp16", "fp32"]
Progress = Callable[[int, int], None]

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
UNREADABLE = (SafetensorError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError)

AGAIN = "Export again; if it happens again, the disk is failing."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished, verified export."""

    path: Path
    bytes: int
    sha256: str
    tensors: int


@dataclass(frozen=True)
class _Planned:
    """A tensor of the export and where it comes from; without a source it is the position numbers."""

    entry: Entry
    part: str = ""
    name: str = ""


def export_model(
    parts: Mapping[str, Source],
    target: Path,
    *,
    dtype: Precision,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> Exported:
    """Write the model made of `parts` to `target` in the original Stable Diffusion 1.x layout and verify it.

    Args:
        parts: the files of "unet", "vae" and "text_encoder".
        target: ends in `.safetensors` or `.ckpt`; replaced only by a verified file.
        dtype: precision of every weight.
        metadata: kept in a `.safetensors` header; a `.ckpt` has no place for it.
        progress: called with (done, total); a tensor counts once when written and once when verified.

    Raises:
        ModelError: a source lacks tensors, has unknown ones, or holds NaN or what fp16 cannot hold; the written file
            differs from its sources.
        StorageError: the target cannot be written.
    """
    if target.suffix not in (".safetensors", ".ckpt"):
        raise ModelError("an export ends in .safetensors or .ckpt", where=target, fix="Give it one of these endings.")
    if not target.parent.is_dir():
        raise StorageError("there is no such folder", where=target.parent, fix="Make the folder, or choose another.")
    steps = _Steps(progress)
    with _opened(parts) as sources:
        plan = _plan(sources, DTYPES[dtype])
        steps.total = 2 * len(plan)
        entries = [planned.entry for planned in plan]
        tensors = _cast_all(plan, sources, steps)
        with writing(target) as beside:
            if target.suffix == ".ckpt":
                write_ckpt(beside, entries, tensors)
            else:
                write_safetensors(beside, entries, tensors, {"format": "pt", **metadata})
            _verify(beside, plan, sources, steps)
            size = beside.stat().st_size
            with beside.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Exported(path=target, bytes=size, sha256=digest, tensors=len(plan))


def verify_export(
    path: Path, parts: Mapping[str, Source], dtype: Precision, *, progress: Progress | None = None
) -> int:
    """Compare a written export with its sources, name by name and bit by bit; return the number of tensors.

    Raises:
        ModelError: naming the first tensor that is missing, surplus or different, or that the file is damaged.
        StorageError: the file cannot be read.
    """
    if not path.is_file():
        raise ModelError("there is no such export", where=path, fix="Check the path, or export first.")
    steps = _Steps(progress)
    with explained(path), _opened(parts) as sources:
        plan = _plan(sources, DTYPES[dtype])
        steps.total = len(plan)
        _verify(path, plan, sources, steps)
    return len(plan)


class _Steps:
    """Counts tensors for a progress callback."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done, self.total = progress, 0, 0

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


@contextmanager
def _opened(parts: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    """Map the three source files; nothing is read yet but their headers."""
    if set(parts) != set(PARTS):
        raise ModelError(f"an export is made of {', '.join(PARTS)}", where=", ".join(sorted(parts)) or "nothing")
    with ExitStack() as stack:
        opened = {}
        for part in PARTS:
            file = parts[part]
            if not file.is_file():
                raise ModelError(f"there is no such file for the {part}", where=file)
            try:
                opened[part] = stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise ModelError(f"is no readable safetensors file ({error})", where=file) from error
        yield opened


def _plan(sources: Mapping[str, Any], dtype: torch.dtype) -> list[_Planned]:
    """All tensors of the export in the order they are written: position numbers first, their type being the widest.

    Raises:
        ModelError: a source lacks a tensor or has an unknown one.
    """
    weights: list[_Planned] = []
    tokens = 0
    for part, source in sources.items():
        renamed = layout.original_keys(part, source.keys())
        missing = set(layout.key_table(part).values()) - set(renamed.values())
        if missing:
            raise ModelError(f"the {part} lacks {len(missing)} tensors, among them this", where=min(missing))
        for name, original in renamed.items():
            shape = tuple(source.get_slice(name).get_shape())
            if name.endswith("embeddings.position_embedding.weight"):
                tokens = shape[0]
            entry = Entry(original, dtype, layout.original_shape(part, name, shape))
            weights.append(_Planned(entry, part, name))
    weights.sort(key=lambda planned: planned.entry.name)
    return [_Planned(Entry(layout.POSITION_IDS, torch.int64, (1, tokens))), *weights]


def _cast_all(plan: list[_Planned], sources: Mapping[str, Any], steps: _Steps) -> Iterator[torch.Tensor]:
    """The tensors of the export one after the other; each is counted when the next is asked for."""
    for planned in plan:
        yield _cast(planned, sources)
        steps.step()


def _cast(planned: _Planned, sources: Mapping[str, Any]) -> torch.Tensor:
    """A tensor as it goes into the export.

    Raises:
        ModelError: it holds NaN or infinity, or numbers that fp16 cannot hold.
    """
    entry = planned.entry
    if not planned.part:
        return torch.arange(entry.shape[1]).reshape(entry.shape)
    stored = sources[planned.part].get_tensor(planned.name)
    if not stored.is_floating_point():
        raise ModelError(f"is no weight but {stored.dtype}", where=planned.name)
    if not torch.isfinite(stored).all():
        raise ModelError(
            f"the {planned.part} holds NaN or infinite numbers in this tensor",
            where=planned.name,
            fix="Training has diverged: export an earlier checkpoint, and train with a lower rate.",
        )
    tensor = stored.to(entry.dtype).reshape(entry.shape)
    if not torch.isfinite(tensor).all():
        largest = stored.abs().max().item()
        raise ModelError(
            f"the {planned.part} holds {largest:.3g} in this tensor, and fp16 ends at 65504",
            where=planned.name,
            fix="Export as fp32.",
        )
    return tensor


def _verify(path: Path, plan: list[_Planned], sources: Mapping[str, Any], steps: _Steps) -> None:
    with _reading(path) as (names, read):
        expected = {planned.entry.name for planned in plan}
        if names != expected:
            stray = min(names ^ expected)
            what = f"the export {'lacks the' if stray in expected else 'has a surplus'} tensor {stray}"
            raise ModelError(what, where=path, fix=AGAIN)
        for planned in plan:
            with _damage_explained(path):
                found = read(planned.entry.name)
            _compare(planned, found, _cast(planned, sources), path)
            steps.step()


def _compare(planned: _Planned, found: torch.Tensor, wanted: torch.Tensor, path: Path) -> None:
    name = planned.entry.name
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        what = f"{name} is {found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        raise ModelError(what, where=path, fix=AGAIN)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.dtype.itemsize]
    if not torch.equal(found.view(bits), wanted.contiguous().view(bits)):
        raise ModelError(f"{name} in the export differs from its source", where=path, fix=AGAIN)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[set[str], Callable[[str], torch.Tensor]]]:
    """The names in an export, and a function that gives a tensor by name; which format it is, its bytes say."""
    with ExitStack() as stack:
        with _damage_explained(path):
            with path.open("rb") as stream:
                is_zip = stream.read(2) == b"PK"
            if is_zip:
                state = _ckpt_state(path)
                names, read = set(state), state.__getitem__
            else:
                opened = stack.enter_context(safe_open(path, framework="pt"))
                names, read = set(opened.keys()), opened.get_tensor
        yield names, read


def _ckpt_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.ckpt`, mapped; its records and their check sums must be what we write."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        records = sorted(record.filename for record in archive.infolist())
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong check sum of {damaged}")
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True, mmap=True, map_location="cpu")["state_dict"]
    data = (f"{ROOT}/data/{number}" for number in range(len(state)))
    if records != sorted([f"{ROOT}/data.pkl", f"{ROOT}/version", *data]):
        raise zipfile.BadZipFile("other records than we write")
    return state


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ModelError(f"the export is damaged ({error})", where=path, fix=AGAIN) from error
