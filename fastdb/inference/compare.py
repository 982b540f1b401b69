"""Comparison of the pictures of a written model and of its source.

Both generate a picture of the same prompt and seed; the two are saved side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.photos import save_png
from fastdb.inference.engine import Engine
from fastdb.inference.request import Request
from fastdb.models.detect import SD1, SD2
from fastdb.models.diffusers_folder import PARTS, read_config, weight_file
from fastdb.models.inspect import inspect, prediction_of
from fastdb.models.loading import load_part, load_scheduler, load_single_file, load_tokenizer
from fastdb.models.resolve import ensure_configurations
from fastdb.reporting import SILENT, Note, Report
from fastdb.runtime.device import choose_device, release_memory

Model = Path | Mapping[str, Path]
"""An original file, a diffusers folder, or the safetensors file of each part."""

PROMPT = "a photo of a red car"
STEPS, SEED = 8, 1
LARGEST_ON_CPU = 256
"""Pixels; a full picture of SD 1.5 would take minutes, and shows no more."""
LIMITS = {"exact": 1, "float16": 16, "bfloat16": 64}
"""The largest difference of 255 that a precision explains. On mini 2 and 10 were measured, see benchmarks/RESULTS.md;
the limits are wider because large models, which were not measured, may be more sensitive."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Difference of two pictures, in steps of 255."""

    most: int
    """The largest difference."""
    mean: float
    allowed: int
    """The largest difference that is allowed."""
    picture: Path


def render_folder(source: Path, *, like: Path | None, vae: Path | None, prediction: str | None = None) -> Path:
    """Return the diffusers folder with configurations, tokenizer and scheduler for pictures of `source`.

    Raises:
        ModelError: pictures cannot be compared: the autoencoder is replaced, the family is not supported, or its sizes
            are unknown and `like` is None.
    """
    found = inspect(source)
    if found.what.family not in (SD1, SD2) or found.what.inpainting:
        kind = f"{found.what.family or 'an unknown family'}{', inpainting' if found.what.inpainting else ''}"
        what = f"cannot be compared by pictures: {kind} is not supported"
        raise ModelError(what, subject=source, fix="Leave out --render: the file is verified without it.")
    if vae is not None:
        raise ModelError("another autoencoder changes the pictures", where=vae, fix="Leave out --render or --vae.")
    if source.is_dir():
        return source
    if like is not None:
        return like
    kind = prediction or prediction_of(found).kind
    return ensure_configurations(source, v_prediction=kind == "v_prediction")


def check_render(
    source: Model,
    result: Path,
    folder: Path,
    *,
    prompt: str = PROMPT,
    averaged: bool = False,
    report: Report = SILENT,
) -> Compared:
    """Generate a picture with each model in float32, save them side by side, and compare them.

    Equal weights give the same picture to 1 of 255; rounded weights give a picture within `LIMITS`.

    Args:
        source: the model that `result` was made of, a Stable Diffusion 1.x or 2.x.
        result: a file, or a diffusers folder; the pictures are saved beside it as `<stem>.render.png`.
        folder: a diffusers folder of this kind of model, for configurations, tokenizer and scheduler.
        prompt: the prompt of both pictures; empty takes `PROMPT`.
        averaged: the source's running averages were taken.

    Raises:
        ModelError: a model cannot be loaded, or the pictures differ by more than precision explains; the result is
            kept.
        StorageError: the pictures cannot be saved.
    """
    prompt = prompt or PROMPT
    place = result.with_name(f"{result.name if result.is_dir() else result.stem}.render.png")
    pictures = []
    for model, ema in ((source, averaged), (result, False)):
        pictures.append(_generate(model, folder, prompt, ema))
        release_memory()
    values = [np.asarray(picture, dtype=np.int16) for picture in pictures]
    difference = np.abs(values[0] - values[1])
    limit = _limit(_dtypes(source), _dtypes(result))
    compared = Compared(most=int(difference.max()), mean=float(difference.mean()), allowed=limit, picture=place)
    numbers = f"largest difference {compared.most} of 255, mean {compared.mean:.2f}"
    row = Row(prompt, [Cell(picture, name) for picture, name in zip(pictures, ("source", result.name), strict=True)])
    save_png(contact_sheet([row], title=numbers, thumb=max(pictures[0].size)), place)
    if compared.most > limit:
        raise ModelError(
            f"generates another picture than its source: {numbers}; at most {limit} is explained by its precision",
            subject=result,
            fix=f"See {place}, and do not use the file until the cause is known; the source is unchanged.",
        )
    report.note(Note("render verified", result.name, f"{numbers}, {limit} allowed; see {place}"))
    return compared


def _limit(before: set[str], after: set[str]) -> int:
    """Return the largest allowed difference of 255, given the types of the weights before and after a conversion."""
    if after == {"float32"} or (before == after and len(after) == 1):
        return LIMITS["exact"]
    return LIMITS["bfloat16" if "bfloat16" in after else "float16"]


def _generate(model: Model, folder: Path, prompt: str, averaged: bool) -> Image.Image:
    device = choose_device()
    configs = {part: read_config(folder / part / "config.json") for part in PARTS}
    parts: dict[str, Any]
    if isinstance(model, Path) and model.is_file():
        parts = load_single_file(model, configs, averaged=averaged)
    else:
        parts = {part: load_part(folder, part, weights=file) for part, file in _files(model).items()}
    # Latents have an eighth of a picture's side.
    side = 8 * int(configs["unet"].get("sample_size") or 64)
    side = min(side, LARGEST_ON_CPU) if device.kind == "cpu" else side
    engine = Engine.from_parts(
        **{part: module.to(device.kind) for part, module in parts.items()},
        tokenizer=load_tokenizer(folder),
        scheduler=load_scheduler(folder),
    )
    (picture,) = engine.generate(Request(prompt, seed=SEED, steps=STEPS, width=side, height=side))
    return picture


def _files(model: Model) -> dict[str, Path]:
    return {part: weight_file(model, part) if isinstance(model, Path) else model[part] for part in PARTS}


def _dtypes(model: Model) -> set[str]:
    """Return the types of a model's weights."""
    files: Iterable[Path] = [model] if isinstance(model, Path) and model.is_file() else _files(model).values()
    dtypes = {info.dtype for file in files for info in open_tensors(file).tensors.values()}
    return {dtype for dtype in dtypes if "float" in dtype}
