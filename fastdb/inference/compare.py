"""Does a written model draw what its source draws? One picture of each, of the same words and seed, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdb import console
from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors
from fastdb.images.contact_sheet import Cell, Row, contact_sheet, save_sheet
from fastdb.inference.engine import Engine, Request
from fastdb.models.detect import SD1, SD2
from fastdb.models.diffusers_folder import PARTS, read_config, weight_file
from fastdb.models.folder_from_file import configurations_of
from fastdb.models.inspect import inspect
from fastdb.models.load_single_file import import_original
from fastdb.models.loading import empty, fill, load_scheduler, load_tokenizer
from fastdb.models.prediction import prediction_of
from fastdb.runtime.device import choose_device, release_memory

Model = Path | Mapping[str, Path]
"""An original file, a diffusers folder, or the safetensors file of each part."""

PROMPT = "a photo of a red car"
STEPS, SEED = 8, 1
LARGEST_ON_CPU = 256
"""Pixels; a full picture of SD 1.5 would take minutes, and tells no more."""
LIMITS = {"exact": 1, "float16": 16, "bfloat16": 64}
"""The largest difference of 255 that a precision explains. On mini 2 and 10 were measured, see benchmarks/RESULTS.md;
more is allowed, since large models, which were not measured, may answer more to small changes."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far two pictures are apart, in steps of 255: the largest difference, the mean one, and what is allowed."""

    most: int
    mean: float
    allowed: int
    picture: Path


def configurations(source: Path, *, like: Path | None, vae: Path | None, prediction: str | None = None) -> Path:
    """The diffusers folder to take configurations, tokenizer and scheduler from, to draw with `source` and its result.

    Raises:
        ModelError: no pictures can be compared: another autoencoder was taken, the family cannot be drawn with here,
            or its sizes are not known and `like` names no folder.
    """
    found = inspect(source)
    if found.what.family not in (SD1, SD2) or found.what.inpainting:
        kind = f"{found.what.family or 'a family not known'}{', inpainting' if found.what.inpainting else ''}"
        what = f"is of {kind}, with which no pictures can be made here to compare"
        raise ModelError(what, where=source, fix="Leave out --render: the file is verified without it.")
    if vae is not None:
        what = "another autoencoder changes the picture, so that comparing tells nothing"
        raise ModelError(what, where=vae, fix="Leave out --render or --vae.")
    if source.is_dir():
        return source
    if like is not None:
        return like
    kind = prediction or prediction_of(source)[0]
    return configurations_of(source, v_prediction=kind == "v_prediction")


def check_render(
    source: Model, result: Path, folder: Path, *, prompt: str = PROMPT, averaged: bool = False
) -> Compared:
    """Draw a picture with each, both computed in float32; save them side by side, and say how far they are apart.

    Weights that are the same give the same picture to 1 of 255; those that were rounded give one within `LIMITS`.

    Args:
        source: what `result` was made of, a Stable Diffusion 1.x or 2.x.
        result: a file, or a diffusers folder; the pictures go beside it as `<stem>.render.png`.
        folder: a diffusers folder of this kind of model, for configurations, tokenizer and scheduler.
        prompt: what to draw; empty takes the usual one.
        averaged: the source's running averages were taken.

    Raises:
        ModelError: one of them cannot be loaded, or the pictures differ by more than precision explains; the result
            stays where it is.
        StorageError: the pictures cannot be saved.
    """
    prompt = prompt or PROMPT
    place = result.with_name(f"{result.name if result.is_dir() else result.stem}.render.png")
    pictures = []
    for model, ema in ((source, averaged), (result, False)):
        pictures.append(_drawn(model, folder, prompt, ema))
        release_memory()
    values = [np.asarray(picture, dtype=np.int16) for picture in pictures]
    apart = np.abs(values[0] - values[1])
    found = Compared(
        most=int(apart.max()),
        mean=float(apart.mean()),
        allowed=allowed(_kinds(source), _kinds(result)),
        picture=place,
    )
    told = f"largest difference {found.most} of 255, {found.mean:.2f} in the mean"
    row = Row(prompt, [Cell(picture, name) for picture, name in zip(pictures, ("source", result.name), strict=True)])
    save_sheet(contact_sheet([row], title=told, thumb=max(pictures[0].size)), place)
    if found.most > found.allowed:
        raise ModelError(
            f"draws another picture than its source: {told}, and its precision explains {found.allowed}; see {place}",
            where=result,
            fix="Do not use it before you know why; the source is untouched.",
        )
    console.say(f"draws what its source draws: {told} ({found.allowed} allowed); {place}")
    return found


def allowed(before: set[str], after: set[str]) -> int:
    """The largest difference of 255 between pictures of weights of these types, and of those made of them."""
    if after == {"float32"} or (before == after and len(after) == 1):
        return LIMITS["exact"]
    return LIMITS["bfloat16" if "bfloat16" in after else "float16"]


def _drawn(model: Model, folder: Path, prompt: str, averaged: bool) -> Image.Image:
    device = choose_device()
    configs = {part: read_config(folder / part / "config.json") for part in PARTS}
    parts = _loaded(model, configs, averaged)
    # What a picture was made for: latents have an eighth of its side.
    side = 8 * int(configs["unet"].get("sample_size") or 64)
    side = min(side, LARGEST_ON_CPU) if device.kind == "cpu" else side
    engine = Engine.from_parts(
        **{part: module.to(device.kind) for part, module in parts.items()},
        tokenizer=load_tokenizer(folder),
        scheduler=load_scheduler(folder),
    )
    (picture,) = engine.generate(Request(prompt, seed=SEED, steps=STEPS, width=side, height=side))
    return picture


def _loaded(model: Model, configs: Mapping[str, Mapping[str, Any]], averaged: bool) -> dict[str, Any]:
    if isinstance(model, Path) and model.is_file():
        return import_original(model, configs, averaged=averaged)
    parts = {}
    for part, file in _files(model).items():
        parts[part] = empty(part, configs[part])
        fill(parts[part], file, part, torch.float32)
    return parts


def _files(model: Model) -> dict[str, Path]:
    if isinstance(model, Path):
        return {part: weight_file(model, part) for part in PARTS}
    return {part: model[part] for part in PARTS}


def _kinds(model: Model) -> set[str]:
    """The types of a model's weights."""
    files: Iterable[Path] = [model] if isinstance(model, Path) and model.is_file() else _files(model).values()
    dtypes = {info.dtype for file in files for info in open_tensors(file).tensors.values()}
    return {dtype for dtype in dtypes if "float" in dtype}
