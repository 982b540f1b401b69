"""Verbs about a session's folder: rename, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, confirmed
from fastdb.commands import folders
from fastdb.commands.space import Removal
from fastdb.console import ConsoleReport, show_removal


def rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(help="New name of the session.", show_default=False)],
    root: Root = None,
) -> None:
    """Rename a session and its exports."""
    folders.rename(name, new_name, root=root, report=ConsoleReport())


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: Root = None,
) -> None:
    """Delete a session for good after a confirmation."""

    def confirm(removal: Removal) -> bool:
        question = show_removal(removal)
        return yes or confirmed(question)

    folders.delete(name, confirm=confirm, root=root, report=ConsoleReport())
