"""Verbs that start and stop a trainer."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, Set, settings_of
from fastdb.console import boundary


def train(
    name: Name,
    settings: Set = None,
    restart: Annotated[bool, typer.Option("--restart", help="Set the checkpoints aside and begin anew.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the trainer and do not follow it.")] = False,
    root: Root = None,
) -> None:
    """Train, or go on where training stopped. Ctrl-C saves and stops; closing the terminal leaves it running."""
    with boundary():
        from fastdb import workflow

        workflow.train(name, settings=settings_of(settings), restart=restart, follow=not detach, root=root)


def stop(name: Name, root: Root = None) -> None:
    """Ask a running trainer to save a checkpoint and stop."""
    with boundary():
        from fastdb import workflow

        workflow.stop(name, root)
