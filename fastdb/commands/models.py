"""Verbs for any model file, whether a session made it or not: what it is, and the same in another layout.

Nothing here needs torch until a verb that does is called.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastdb import console
from fastdb.reporting import format_bytes

if TYPE_CHECKING:
    from fastdb.models.inspect import Inspection


def inspect(file: str | Path, *, probe: bool = False) -> Inspection:
    """Say what a model file, or a folder in diffusers layout, is; nothing of it is loaded and nothing in it runs.

    `probe` asks the UNet of a Stable Diffusion 2.x what it predicts where nothing else tells: it is loaded, 1.7 GB.

    Raises:
        ModelError: it cannot be read.
        StorageError: the disk fails, or reading is forbidden.
    """
    from fastdb.commands.inspection_rows import inspection_rows
    from fastdb.models.inspect import inspect as inspect_model
    from fastdb.models.inspect import prediction_of
    from fastdb.runtime.paths import expanded

    found = inspect_model(expanded(file))
    if probe and found.prediction is not None and not found.prediction.kind:
        with console.bar("probe", "tensor") as update:
            found = replace(found, prediction=prediction_of(found, update))
    console.table(("", found.path.name), inspection_rows(found))
    return found


def convert(
    source: str | Path,
    target: str | Path,
    *,
    precision: Literal["fp16", "bf16", "fp32"] | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
    like: str | Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] | None = None,
    render: bool = False,
) -> Path:
    """Write a model in another layout, verified by reading it back.

    `source` is a `.safetensors`, a `.ckpt` or a diffusers folder; the ending of `target` says which of them it becomes.
    `precision` None keeps what the source has; `ema` takes its running averages; `vae` names another autoencoder;
    `like` a diffusers folder whose configurations a new one takes. `prediction` tells what the UNet of an SD 2.x
    predicts; None takes what the source says, and where it says nothing its UNet is asked. Beside a file of that family
    a `.yaml` of the same name says so too, in place of any that is there. `render` makes a picture with source and
    result and compares them (SD 1.x and 2.x); from file to file it needs `like` too.

    Raises:
        ModelError: the source is no whole model, or its layout is not known; a folder needs `like`; the pictures differ
            by more than the precision explains, and the result stays for you to look at.
        StorageError: the target cannot be written.
    """
    from fastdb.runtime.paths import expanded

    def place(path: str | Path | None) -> Path | None:
        return None if path is None else expanded(path).absolute()

    from fastdb.models.convert import convert as converted

    wanted = expanded(target).absolute()
    if render:
        from fastdb.inference.compare import check_render, render_folder

        folder = render_folder(expanded(source).absolute(), like=place(like), vae=place(vae), prediction=prediction)
    with console.bar(wanted.name, "tensor") as update:
        done = converted(
            expanded(source).absolute(),
            wanted,
            dtype=precision,
            averaged=ema,
            vae=place(vae),
            like=place(like),
            prediction=prediction,
            progress=update,
        )
    console.say(f"verified {done.path}: {done.family}, {done.tensors} tensors, {format_bytes(done.bytes)}")
    if done.config:
        console.say(f"keep {done.config} beside it: it says what the UNet predicts")
    if render:
        check_render(expanded(source).absolute(), done.path, folder, averaged=ema, report=console.ConsoleReport())
    return done.path
