"""Verbs about model files: convert, inspect."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from fastdb.cli.options import Precision, Render, Root, path
from fastdb.commands import lora
from fastdb.commands import models as verbs
from fastdb.commands.inspection_rows import inspection_rows
from fastdb.console import ConsoleReport, table
from fastdb.errors import ConfigError
from fastdb.sessions.exports import locate_models


class Layout(StrEnum):
    """Layouts a model can be converted to."""

    safetensors = "safetensors"
    ckpt = "ckpt"
    diffusers = "diffusers"
    lora_kohya = "lora-kohya"
    lora_diffusers = "lora-diffusers"


LORA_FORMS: dict[Layout | None, Literal["kohya", "diffusers"]] = {
    Layout.lora_kohya: "kohya",
    Layout.lora_diffusers: "diffusers",
}


class Prediction(StrEnum):
    """Prediction types of a UNet."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


def convert(
    source: Annotated[
        Path,
        typer.Argument(parser=path, help="A .safetensors or .ckpt, a diffusers folder, or mini.", show_default=False),
    ],
    target: Annotated[Path, typer.Argument(parser=path, help="The file or folder to write.", show_default=False)],
    to: Annotated[Layout | None, typer.Option(help="Layout to write.", show_default="by the target's suffix")] = None,
    half: Annotated[bool, typer.Option("--half", help="Same as --precision fp16.")] = False,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision to write.", show_default="as in the source")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Use the EMA weights of the UNet.")] = False,
    vae: Annotated[Path | None, typer.Option(parser=path, help="File with another VAE.", show_default=False)] = None,
    like: Annotated[
        Path | None,
        typer.Option(parser=path, help="Diffusers folder with the configurations to use.", show_default=False),
    ] = None,
    prediction: Annotated[
        Prediction | None, typer.Option(help="Prediction type of an SD 2.x.", show_default="detected")
    ] = None,
    render: Render = False,
    root: Root = None,
) -> None:
    """Convert a model to another layout or precision."""
    if half and precision not in (None, Precision.fp16):
        raise ConfigError(f"--half and --precision {precision.value} cannot be combined", fix="Leave out one of them.")
    wanted = Precision.fp16 if half and precision is None else precision
    if to in LORA_FORMS:
        if unfit := [name for name, value in _of_models(ema, vae, like, prediction, render).items() if value]:
            raise ConfigError(f"{unfit[0]} is for whole models, not for a LoRA", fix=f"Leave out {unfit[0]}.")
        report = ConsoleReport()
        lora.convert_lora(
            source,
            target,
            LORA_FORMS[to],
            precision=wanted.value if wanted else None,
            root=root,
            report=report,
        )
        return
    verbs.convert(
        source,
        _target(target, to),
        precision=wanted.value if wanted else None,
        ema=ema,
        vae=vae,
        like=like,
        prediction=prediction.value if prediction else None,
        render=render,
        root=root,
        report=ConsoleReport(),
    )


def _of_models(*values: object) -> dict[str, object]:
    """Return the options that only whole models have, by their names."""
    return dict(zip(("--ema", "--vae", "--like", "--prediction", "--render"), values, strict=True))


def _target(target: Path, to: Layout | None) -> Path:
    """Return the target with the suffix of its layout.

    Raises:
        ConfigError: it has the suffix of another layout, or an unknown one.
    """
    endings = {Layout.safetensors: ".safetensors", Layout.ckpt: ".ckpt"}
    own = next((layout for layout, ending in endings.items() if target.suffix == ending), None)
    if to is None and own is None and re.fullmatch(r"\.[A-Za-z]\w*", target.suffix):
        raise ConfigError(
            f"has the unknown suffix {target.suffix}",
            subject=target,
            fix="Use .safetensors or .ckpt, or add --to diffusers to write a folder.",
        )
    if to is None or to == own or (to == Layout.diffusers and own is None):
        return target
    if own is not None:
        raise ConfigError(f"does not end as {to.value}", subject=target, fix="Change the suffix, or leave out --to.")
    return target.with_name(f"{target.name}{endings[to]}")


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            parser=path, help="Model file, diffusers folder, or session for its exports.", show_default=False
        ),
    ],
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Run the UNet of an SD 2.x if its prediction type is not recorded."),
    ] = False,
    root: Root = None,
) -> None:
    """Show what a model file contains, running no code in it."""
    for model in locate_models(file, root):
        inspection = verbs.inspect(model, probe=probe, report=ConsoleReport())
        table(("", inspection.path.name), inspection_rows(inspection))
