"""Arguments and options shared by several verbs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdb.errors import ConfigError

Name = Annotated[str, typer.Argument(help="Session name or folder.", show_default=False)]
Root = Annotated[Path | None, typer.Option("--root", help="Folder of the sessions.", envvar="FASTDB_ROOT")]
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


def settings_of(pairs: list[str] | None) -> dict[str, Any]:
    """Parse `unet.steps=800` pairs; a list is parsed as YAML, other values by the type of their setting.

    Raises:
        ConfigError: a pair has no equals sign.
    """
    import yaml

    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("is not a setting and a value", where=repr(pair), fix="Write it as --set unet.steps=800.")
        settings[name.strip()] = value.strip()
        if value.strip().startswith("["):
            try:
                settings[name.strip()] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):
                continue  # Reported with its name and value when the settings are built.
    return settings
