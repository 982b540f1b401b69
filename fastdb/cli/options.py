"""Arguments and options shared by several verbs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def path(text: str | Path) -> Path:
    """Parse a path; the shell passes an unset variable as an empty one, which would mean the current folder.

    Raises:
        typer.BadParameter: it is empty.
    """
    if not str(text).strip():
        raise typer.BadParameter("the path is empty.")
    return Path(text)


def text(value: str) -> str:
    """Parse a text that must not be empty.

    Raises:
        typer.BadParameter: it is empty.
    """
    if not value.strip():
        raise typer.BadParameter("the value is empty.")
    return value


Name = Annotated[str, typer.Argument(help="Session name or folder.", show_default=False)]
Root = Annotated[Path | None, typer.Option("--root", parser=path, help="Folder of the sessions.", envvar="FASTDB_ROOT")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, such as unet.steps=800; repeatable.")]
Render = Annotated[bool, typer.Option("--render", help="Generate an image with source and result, and compare them.")]


class Precision(StrEnum):
    """Number formats of exported files."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(StrEnum):
    """Learning rate schedules of added steps."""

    hold = "hold"
    rewarm = "rewarm"
    decay = "decay"
