"""Verbs that give sessions away and take them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Root
from fastdb.console import boundary

Checkpoints = Annotated[
    bool, typer.Option("--checkpoints", help="Checkpoints, class images and logs too: training goes on from them.")
]


def share(
    name: Name,
    target: Annotated[
        Path | None, typer.Argument(help="The zip to write.", show_default="<name>.zip in this folder")
    ] = None,
    checkpoints: Checkpoints = False,
    root: Root = None,
) -> None:
    """Write a session as a zip to give away: photos, captions, settings."""
    with boundary():
        from fastdb.commands import sharing

        sharing.share(name, target, checkpoints=checkpoints, root=root)


def adopt(
    source: Annotated[
        str,
        typer.Argument(
            help="A zip, a folder, a link to one of these, or a session of the classic notebook.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="The new session's name.", show_default="the one it has")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Its base model, as it lies here.", show_default="what it says; a classic session: mini"),
    ] = None,
    root: Root = None,
) -> None:
    """Make a session of one that comes from elsewhere; nothing is changed there."""
    with boundary():
        from fastdb.commands import sharing

        sharing.adopt(source, name, base=base, root=root)


def duplicate(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new session's name.", show_default=False)],
    checkpoints: Checkpoints = False,
    from_step: Annotated[
        int | None,
        typer.Option("--from-step", min=0, help="Checkpoints too, up to this step of the UNet's stage."),
    ] = None,
    root: Root = None,
) -> None:
    """Make a new session with the photos, captions and settings of another."""
    with boundary():
        from fastdb.commands import sharing

        sharing.duplicate(name, new, checkpoints=checkpoints, from_step=from_step, root=root)
