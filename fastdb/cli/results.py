"""Verbs that use what was trained: the file, pictures, measurements."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Precision, Render, Root
from fastdb.console import boundary
from fastdb.errors import ConfigError


class Format(StrEnum):
    """Kinds of exported files."""

    safetensors = "safetensors"
    ckpt = "ckpt"


class Measure(StrEnum):
    """What measures an evaluation."""

    auto = "auto"
    drawn = "drawn"
    clip = "clip"


def export(
    name: Name,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="Kind of file; both when none is named.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="fp16 is half the size and what people use.")] = Precision.fp16,
    step: Annotated[
        int | None, typer.Option(help="Step of the UNet stage; the newest when not given.", show_default=False)
    ] = None,
    render: Render = False,
    root: Root = None,
) -> None:
    """Write the trained model as one file in the original layout, verified by reading it back."""
    with boundary():
        from fastdb.commands import results

        kinds = [kind.value for kind in formats or Format]
        results.export(name, formats=kinds, precision=precision.value, step=step, render=render, root=root)


def generate(
    source: Annotated[str, typer.Argument(help="A session, or an exported file.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    negative_prompt: Annotated[str, typer.Option("--negative", help="What not to draw.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones follow.")] = 0,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    sampler: Annotated[str, typer.Option(help="Sampler, such as 'Euler a' or DDIM.")] = "DPM++ 2M",
    width: Annotated[int | None, typer.Option(help="Pixels; as trained when not given.", show_default=False)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; as trained when not given.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of a file outside a session.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures.", show_default=False)] = None,
    root: Root = None,
) -> None:
    """Make pictures by prompt, seed, steps, guidance and sampler."""
    with boundary():
        from fastdb.commands import results

        results.generate(
            source,
            prompt,
            base=base,
            output=output,
            root=root,
            negative_prompt=negative_prompt,
            seed=seed,
            count=count,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            width=width,
            height=height,
        )


def evaluate(
    name: Name,
    checkpoints: Annotated[str, typer.Option(help="Steps of the UNet stage, such as 500,1000; or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt; groups of one prompt get more.")] = 4,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt instead of the usual ones; may be given many times.")
    ] = None,
    measure: Annotated[Measure, typer.Option(help="drawn: for the base model mini; clip: CLIP and DINO.")] = (
        Measure.auto
    ),
    clip: Annotated[
        str | None, typer.Option(help="CLIP model: a folder or a name on the Hub.", show_default="ViT-B/32")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(help="DINO model: a folder or a name on the Hub.", show_default="ViT-S/16 if here")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.", show_default="samples.steps")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale.", show_default="samples.guidance")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler, such as 'Euler a' or DDIM.", show_default="DPM++ 2M")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="An exported file, instead of the checkpoints.", show_default=False)
    ] = None,
    root: Root = None,
) -> None:
    """Measure each checkpoint on the same prompts and seeds, and name the one to use; goes on where it stopped."""
    with boundary():
        from fastdb.commands import results

        results.evaluate(
            name,
            checkpoints=_steps(checkpoints),
            seeds=seeds,
            prompts=prompts or (),
            measure=measure.value,
            clip=clip,
            dino=dino,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            file=file,
            root=root,
        )


def _steps(text: str) -> list[int] | None:
    """`500,1000` as numbers; `all` as None."""
    if text.strip().lower() == "all":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError("is no list of steps", where=f"checkpoints {text!r}", fix="Write 500,1000 or all.")
    return [int(part) for part in parts]
