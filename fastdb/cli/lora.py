"""Verbs about LoRA files: merge, extract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Precision, Root, path
from fastdb.commands import lora as verbs
from fastdb.console import ConsoleReport, table

Out = Annotated[Path, typer.Argument(parser=path, help="The file to write.", show_default=False)]


def merge(
    base: Annotated[
        Path,
        typer.Argument(parser=path, help="A .safetensors or .ckpt, a diffusers folder, or mini.", show_default=False),
    ],
    target: Out,
    loras: Annotated[
        list[str] | None, typer.Option("--lora", help="FILE or FILE:weight; repeatable.", show_default=False)
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Precision to write.")] = Precision.fp16,
    root: Root = None,
) -> None:
    """Merge LoRAs into a base model."""
    verbs.merge(base, target, loras or (), precision=precision.value, root=root, report=ConsoleReport())


def extract(
    name: Name,
    target: Out,
    rank: Annotated[int | None, typer.Option(help="Rank of every layer.", show_default=False)] = None,
    error: Annotated[
        float | None, typer.Option(help="Instead: largest relative error of a layer, such as 0.1.", show_default=False)
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Precision to write.")] = Precision.fp16,
    root: Root = None,
) -> None:
    """Extract a LoRA from a session that trained all weights."""
    report = ConsoleReport()
    done = verbs.extract(name, target, rank=rank, error=error, precision=precision.value, root=root, report=report)
    rows = [(f"{each.part}.{each.layer}", str(each.pair.rank), f"{each.error:.3f}") for each in done.layers]
    rest = [(f"{part}: weights outside LoRA", "", f"{share:.3f}") for part, share in done.outside.items()]
    table(("layer", "rank", "error"), [*rows, *rest])
