"""Arguments and options shared by several verbs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastdb.errors import ConfigError


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


def confirmed(question: str) -> bool:
    """Ask a question about a deletion on the terminal.

    Raises:
        ConfigError: there is nobody to answer.
        KeyboardInterrupt: the person left the question.
    """
    try:
        return typer.confirm(question)
    except typer.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise KeyboardInterrupt from None
        raise ConfigError(
            "the question was not answered, because there is no terminal; nothing was deleted",
            fix="Run the same command with --yes, which does not ask.",
        ) from None


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


class Measure(StrEnum):
    """Readers of pictures."""

    auto = "auto"
    drawn = "drawn"
    clip = "clip"
