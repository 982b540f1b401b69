"""Verbs about LoRA files: convert, merge, extract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdb.checkpoints.claims import claims_kept
from fastdb.commands.models import located
from fastdb.errors import ConfigError
from fastdb.models.resolve import ensure_base
from fastdb.reporting import SILENT, Note, Report, argument, counted, format_bytes
from fastdb.runtime.paths import expanded
from fastdb.sessions.session import Session, SessionLike

if TYPE_CHECKING:
    from fastdb.models.export import Exported, Precision
    from fastdb.models.lora.extraction import ExtractedLayer
    from fastdb.models.lora.reading import LoRAFile


@dataclass(frozen=True)
class Extraction:
    """A LoRA that was extracted from a full fine-tuning.

    Attributes:
        outside: by part, the share of the whole difference, as an L2 norm, in weights that no LoRA contains.
    """

    path: Path
    layers: tuple[ExtractedLayer, ...]
    outside: dict[str, float]


def convert_lora(
    source: str | Path,
    target: str | Path,
    form: Literal["kohya", "diffusers"],
    *,
    precision: Precision | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Path:
    """Write a LoRA in another form, whose effect is the same.

    Args:
        precision: that of the source by default.

    Raises:
        ConfigError: the target is the source, or does not end in `.safetensors`.
        ModelError: the source is no LoRA that can be read.
        StorageError: the target cannot be written.
    """
    from fastdb.models.lora.forms import form_metadata, write_lora
    from fastdb.models.lora.reading import read_lora

    path, out = located(source, root).absolute(), _new_file(target)
    if path.exists() and out.exists() and out.samefile(path):
        raise ConfigError("is both source and target", subject=out, fix="Give the target another name.")
    lora = read_lora(path)
    dtype = precision or _precision_of(lora)
    with report.progress(out.name, "tensor") as update:
        metadata = form_metadata(lora.adapters, lora.metadata, form, out.stem)
        written = write_lora(lora.adapters, out, form, dtype=dtype, metadata=metadata, progress=update)
    _report_written(report, written, f"alpha from {lora.scale_from}")
    return out


def merge(
    base: str | Path,
    target: str | Path,
    loras: Sequence[str],
    *,
    precision: Precision = "fp16",
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Path:
    """Merge LoRAs into a base model and write the result to one file.

    Args:
        base: a file or a diffusers folder of Stable Diffusion 1.x, or `mini`.
        target: ends in `.safetensors` or `.ckpt`.
        loras: files, each with an optional weight, such as `cup_lora.safetensors:0.8`.

    Raises:
        ConfigError: no LoRA was named, or the target is a source.
        ModelError: a file cannot be used, or base model and LoRA do not belong together.
        StorageError: the target cannot be written.
    """
    from fastdb.models.export import DTYPES
    from fastdb.models.lora.merging import merge as merge_files

    if not loras:
        raise ConfigError("no LoRA was named", where="--lora", fix="Name one: fastdb merge BASE OUT --lora FILE")
    model, out = located(base, root).absolute(), expanded(target).absolute()
    opened = weighted_loras(loras, root)
    if any(path.exists() and out.exists() and out.samefile(path) for path in (model, *(each.path for each in opened))):
        raise ConfigError("is both source and target", subject=out, fix="Give the target another name.")
    with report.progress(out.name, "tensor") as update:
        written = merge_files(model, out, opened, dtype=DTYPES[precision], progress=update)
    _report_written(report, written, precision)
    return out


@claims_kept()
def extract(
    session: SessionLike,
    target: str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    precision: Precision = "fp16",
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Extraction:
    """Extract a LoRA in kohya's form from a session that trained all weights.

    Args:
        rank: of every layer.
        error: in place of `rank`, the largest relative error of a layer, 0.1 for a tenth of its difference.

    Raises:
        ConfigError: not exactly one of `rank` and `error`, or the session trains a LoRA.
        TrainingError: nothing was trained yet.
        ModelError, CheckpointError, StorageError: weights cannot be read, or the target cannot be written.
    """
    session = Session.open(session, root)
    _check_extraction(session, rank, error)
    out = _new_file(target)
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    from fastdb.checkpoints.export_parts import export_metadata, export_parts
    from fastdb.checkpoints.progress import STAGES
    from fastdb.formats.reader import open_tensors
    from fastdb.models.diffusers_folder import weight_file
    from fastdb.models.lora.extraction import extract as extract_part
    from fastdb.models.lora.extraction import outside
    from fastdb.models.lora.forms import form_metadata, write_lora

    parts, done = export_parts(session, base)
    layers: list[ExtractedLayer] = []
    rest: dict[str, float] = {}
    for part in STAGES:
        before, after = open_tensors(weight_file(base.folder, part)), open_tensors(parts[part])
        if before.path == after.path:
            continue
        with report.progress(part, "layer") as update:
            of_part = list(extract_part(part, before, after, rank=rank, error=error, progress=update))
        missing = outside(part, before, after)
        whole = (sum(layer.norm**2 for layer in of_part) + missing**2) ** 0.5
        rest[part] = missing / whole if whole else 0.0
        layers += of_part
    adapters = {part: {each.layer: each.pair for each in layers if each.part == part} for part in rest}
    header = {**export_metadata(session, base, done), "modelspec.architecture": "stable-diffusion-v1/lora"}
    metadata = form_metadata(adapters, header, "kohya", out.stem)
    written = write_lora(adapters, out, "kohya", dtype=precision, metadata=metadata)
    _report_written(report, written, precision)
    return Extraction(out, tuple(layers), rest)


def weighted_loras(named: Sequence[str], root: str | Path | None = None) -> list[LoRAFile]:
    """Read LoRA files, each with an optional weight, such as `cup_lora.safetensors:0.8`.

    Raises:
        ConfigError: a weight is no number.
        ModelError: a file cannot be used.
    """
    from fastdb.models.lora.reading import read_lora

    return [read_lora(located(file, root).absolute()).weighted(weight) for file, weight in map(file_and_weight, named)]


def file_and_weight(text: str) -> tuple[str, float]:
    """Split `FILE:weight`; the weight is 1 if it is missing.

    Raises:
        ConfigError: the weight is no finite number.
    """
    file, colon, weight = text.rpartition(":")
    if not colon or expanded(text).exists() or text.endswith(".safetensors"):
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not -100 <= value <= 100:
        raise ConfigError(
            f"the weight {weight!r} is no number between -100 and 100",
            where=text,
            fix=f"Write a number, such as {argument(f'{file}:0.8')}.",
        )
    return file, value


def _check_extraction(session: Session, rank: int | None, error: float | None) -> None:
    command = f"fastdb extract {argument(session.name)} OUT.safetensors"
    if session.config.method == "lora":
        raise ConfigError(
            "this session trains a LoRA already",
            where=session.name,
            fix=f"Export it: fastdb export {argument(session.name)}",
        )
    if (rank is None) == (error is None):
        raise ConfigError(
            "needs either a rank or a largest error", subject="extract", fix=f"Choose one: {command} --rank 32"
        )
    if (rank is not None and not 1 <= rank <= 1024) or (error is not None and not 0 < error < 1):
        raise ConfigError(
            f"the rank {rank} is not between 1 and 1024"
            if error is None
            else f"the error {error} is not between 0 and 1",
            where="extract",
            fix=f"Choose another value: {command} {'--rank 32' if error is None else '--error 0.1'}",
        )


def _new_file(target: str | Path) -> Path:
    """Return the absolute path of a LoRA file to write.

    Raises:
        ConfigError: it does not end in `.safetensors`.
    """
    path = expanded(target).absolute()
    if path.suffix != ".safetensors":
        raise ConfigError(
            "is no name for a LoRA file",
            subject=target,
            fix=f"Write {argument(str(path.with_suffix('.safetensors')))}.",
        )
    return path


def _precision_of(lora: LoRAFile) -> Precision:
    dtypes = {str(pair.down.dtype) for adapter in lora.adapters.values() for pair in adapter.values()}
    names: dict[str, Precision] = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
    return names.get(dtypes.pop(), "fp32") if len(dtypes) == 1 else "fp32"


def _report_written(report: Report, written: Exported, about: str) -> None:
    details = f"{counted(written.tensors, 'tensor')}, {format_bytes(written.bytes)}, {about}"
    report.note(Note("model verified", str(written.path), details))
