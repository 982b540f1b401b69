"""Verbs that use what was trained: export, generate, evaluate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Measure, Name, Precision, Render, Root, path
from fastdb.commands import results as verbs
from fastdb.console import ConsoleReport, show_evaluation
from fastdb.errors import ConfigError


class Format(StrEnum):
    """Formats of exported files."""

    safetensors = "safetensors"
    ckpt = "ckpt"


def export(
    name: Name,
    formats: Annotated[list[Format] | None, typer.Option("--format", help="File format; both by default.")] = None,
    precision: Annotated[Precision, typer.Option(help="fp16 is half the size of fp32 and usual.")] = Precision.fp16,
    step: Annotated[int | None, typer.Option(help="Checkpoint of the UNet stage.", show_default="newest")] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a LoRA: merge it into the base model, and export the whole.")
    ] = False,
    render: Render = False,
    root: Root = None,
) -> None:
    """Export the trained model to one file, verified."""
    verbs.export(
        name,
        formats=[kind.value for kind in formats] if formats else None,
        precision=precision.value,
        step=step,
        merged=merged,
        render=render,
        root=root,
        report=ConsoleReport(),
    )


def generate(
    source: Annotated[str, typer.Argument(help="Session or exported file.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="Prompt.", show_default="that of the session's photos")] = "",
    step: Annotated[
        int | None, typer.Option(help="Checkpoint of the session's UNet stage.", show_default="the newest")
    ] = None,
    negative_prompt: Annotated[str, typer.Option("--negative", help="Negative prompt.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first image; each next image adds 1.")] = 0,
    count: Annotated[int, typer.Option(help="Number of images.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale.", show_default="samples.guidance")
    ] = None,
    sampler: Annotated[str, typer.Option(help="Sampler, such as 'Euler a' or DDIM.")] = "DPM++ 2M",
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="as trained")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", show_default="as trained")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of a file outside a session.", show_default=False)
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", help="FILE or FILE:weight; repeatable. In prompts: <lora:NAME:0.8>.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(parser=path, help="Folder of the images.", show_default="generated/")
    ] = None,
    root: Root = None,
) -> None:
    """Generate images from a session or an exported file."""
    verbs.generate(
        source,
        prompt,
        step=step,
        base=base,
        loras=loras or (),
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
        report=ConsoleReport(),
    )


def evaluate(
    name: Name,
    checkpoints: Annotated[str, typer.Option(help="Steps of the UNet stage, such as 500,1000; or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Images per prompt; groups of a single prompt get more.")] = 4,
    first_seed: Annotated[int, typer.Option(help="Another number gives other images.")] = 0,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Generate more images of the checkpoints in question.")
    ] = False,
    at_most: Annotated[int, typer.Option(help="With --until-decided: images of the subject of each of those.")] = 256,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="Prompt that replaces the default set; repeatable.")
    ] = None,
    measure: Annotated[Measure, typer.Option(help="drawn: for the base model mini; clip: CLIP and DINO.")] = (
        Measure.auto
    ),
    clip: Annotated[
        str | None, typer.Option(help="CLIP model: a folder or a name on the Hub.", show_default="ViT-B/32")
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(help="DINO model: a folder or a name on the Hub.", show_default="ViT-S/16 if there"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.", show_default="samples.steps")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale.", show_default="samples.guidance")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler, such as 'Euler a' or DDIM.", show_default="DPM++ 2M")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(parser=path, help="Exported file to evaluate instead of checkpoints.", show_default=False),
    ] = None,
    root: Root = None,
) -> None:
    """Compare checkpoints on the same prompts; choose the best."""
    if file is not None and _steps(checkpoints) is not None:
        raise ConfigError("--file and --checkpoints cannot be combined", fix="Leave out one of them.")
    evaluation = verbs.evaluate(
        name,
        checkpoints=_steps(checkpoints),
        seeds=seeds,
        first_seed=first_seed,
        until_decided=until_decided,
        at_most=at_most,
        prompts=prompts or (),
        measure=measure.value,
        clip=clip,
        dino=dino,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        file=file,
        root=root,
        report=ConsoleReport(),
    )
    show_evaluation(evaluation)


def _steps(text: str) -> list[int] | None:
    """Parse `500,1000`; return None for `all`.

    Raises:
        ConfigError: not a list of steps.
    """
    if text.strip().lower() == "all":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError("is not a list of steps", subject=f"checkpoints {text!r}", fix="Write 500,1000 or all.")
    return [int(part) for part in parts]
