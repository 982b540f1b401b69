"""Arguments and options that several verbs of the command line have in common."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdb.errors import ConfigError

Name = Annotated[str, typer.Argument(help="The session's name, or its folder.", show_default=False)]
Root = Annotated[Path | None, typer.Option("--root", help="The folder that holds the sessions.", envvar="FASTDB_ROOT")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, such as unet.steps=800; may be given many times.")
]
Render = Annotated[bool, typer.Option("--render", help="Make a picture with source and result, and compare them.")]


class Precision(StrEnum):
    """Number formats of exported files."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(StrEnum):
    """How the rate of further steps goes."""

    hold = "hold"
    rewarm = "rewarm"
    decay = "decay"


def settings_of(pairs: list[str] | None) -> dict[str, Any]:
    """`unet.steps=800` pairs as a mapping; a list is read as YAML, everything else by its setting's kind."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("is no setting and value", where=repr(pair), fix="Write it as --set unet.steps=800.")
        found[name.strip()] = value.strip()
        if value.strip().startswith("["):
            try:
                found[name.strip()] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):
                continue  # Refused with its name and value when the settings are built.
    return found
