"""Verbs that move sessions: share, adopt, duplicate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, path, text
from fastdb.commands import sharing as verbs
from fastdb.console import ConsoleReport

Checkpoints = Annotated[
    bool, typer.Option("--checkpoints", help="Include checkpoints, class images, samples and logs.")
]


def share(
    name: Name,
    target: Annotated[
        Path | None, typer.Argument(parser=path, help="Zip file to write.", show_default="<name>.zip in this folder")
    ] = None,
    checkpoints: Checkpoints = False,
    root: Root = None,
) -> None:
    """Write a session to a zip: photos, captions, settings."""
    verbs.share(name, target, checkpoints=checkpoints, root=root, report=ConsoleReport())


def adopt(
    source: Annotated[
        str,
        typer.Argument(
            parser=text,
            help="Zip, folder, link to either, or session of the classic notebook.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="Name of the new session.", show_default="its own")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model to use on this machine.", show_default="as recorded; none for classic"),
    ] = None,
    root: Root = None,
) -> None:
    """Create a session from a zip, a folder or a link."""
    verbs.adopt(source, name, base=base, root=root, report=ConsoleReport())


def duplicate(
    name: Name,
    new: Annotated[str, typer.Argument(help="Name of the new session.", show_default=False)],
    checkpoints: Checkpoints = False,
    from_step: Annotated[
        int | None,
        typer.Option("--from-step", min=0, help="Include checkpoints up to this step of the UNet stage."),
    ] = None,
    root: Root = None,
) -> None:
    """Copy photos, captions and settings to a new session."""
    verbs.duplicate(name, new, checkpoints=checkpoints, from_step=from_step, root=root, report=ConsoleReport())
