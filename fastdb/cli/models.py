"""Verbs for model files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Precision, Render
from fastdb.console import boundary
from fastdb.errors import ConfigError


class Layout(StrEnum):
    """What a model can be converted to."""

    safetensors = "safetensors"
    ckpt = "ckpt"
    diffusers = "diffusers"


class Prediction(StrEnum):
    """What a UNet may predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors, a .ckpt, or a diffusers folder.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="The new file, or the new folder.", show_default=False)],
    to: Annotated[
        Layout | None, typer.Option(help="Layout; what the target's ending says when not given.", show_default=False)
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="The same as --precision fp16.")] = False,
    precision: Annotated[
        Precision | None, typer.Option(help="As the source has it when not given.", show_default=False)
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running averages of the UNet's weights.")] = False,
    vae: Annotated[Path | None, typer.Option(help="File of another autoencoder.", show_default=False)] = None,
    like: Annotated[
        Path | None, typer.Option(help="A diffusers folder of the same kind of model.", show_default=False)
    ] = None,
    prediction: Annotated[
        Prediction | None, typer.Option(help="Of an SD 2.x; found out when not given.", show_default=False)
    ] = None,
    render: Render = False,
) -> None:
    """Write a model in another layout or precision: original file to file or diffusers folder, folder to file."""
    with boundary():
        from fastdb.commands import models

        wanted = Precision.fp16 if half and precision is None else precision
        models.convert(
            source,
            _target(target, to),
            precision=wanted.value if wanted else None,
            ema=ema,
            vae=vae,
            like=like,
            prediction=prediction.value if prediction else None,
            render=render,
        )


def _target(target: Path, to: Layout | None) -> Path:
    """The target with the ending of its layout.

    Raises:
        ConfigError: it has the ending of another one.
    """
    endings = {Layout.safetensors: ".safetensors", Layout.ckpt: ".ckpt"}
    said = next((layout for layout, ending in endings.items() if target.suffix == ending), None)
    if to is None or to == said or (to == Layout.diffusers and said is None):
        return target
    if said is not None:
        raise ConfigError(f"is not {to.value}", where=target, fix="Give it another ending, or leave out --to.")
    return target.with_name(f"{target.name}{endings[to]}")


def inspect(
    file: Annotated[
        Path, typer.Argument(help="A model file, or a folder in the diffusers layout.", show_default=False)
    ],
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Load the UNet of an SD 2.x and ask what it predicts, if nothing else tells."),
    ] = False,
) -> None:
    """Say what a model file is: family, precision, LoRA, VAE and so on. Nothing is loaded, and nothing in it runs."""
    with boundary():
        from fastdb.commands import models

        models.inspect(file, probe=probe)
