"""Verbs about disk space: space, free."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

import typer

from fastdb.cli.options import Root, confirmed
from fastdb.commands import space as verbs
from fastdb.console import ConsoleReport, show_removal, show_usage
from fastdb.errors import ConfigError


class What(StrEnum):
    """Kinds of files that can be deleted."""

    set_aside = "set-aside"
    exports = "exports"
    samples = "samples"
    checkpoints = "checkpoints"
    unfinished = "unfinished"
    class_images = "class-images"


def space(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SESSION]...", help="Sessions to show in detail.", show_default=False),
    ] = None,
    root: Root = None,
) -> None:
    """Show the disk usage of sessions and cached models."""
    show_usage(verbs.space(names or (), root), details=bool(names))


def free(
    name: Annotated[
        str | None, typer.Argument(metavar="[SESSION]", help="Session name or folder.", show_default=False)
    ] = None,
    what: Annotated[list[What] | None, typer.Option(help="Kind of files; repeatable.")] = None,
    models: Annotated[bool, typer.Option("--models", help="Cached base models, least recently used first.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Unfinished folders older than a day, and work of sessions that are gone."),
    ] = False,
    wanted: Annotated[float, typer.Option("--gb", help="With --models: GB to delete; 0 deletes all.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: Root = None,
) -> None:
    """Delete files for good after a confirmation.

    Files that training needs to resume are never deleted.
    """
    report = ConsoleReport()

    def confirm(removal: verbs.Removal) -> bool:
        question = show_removal(removal)
        return yes or confirmed(question)

    if (name is not None) + models + unfinished != 1 or (what and name is None):
        raise ConfigError(
            "needs either a session and --what, or --models, or --unfinished",
            subject="fastdb free",
            fix="Give exactly one of the three.",
        )
    if wanted and not models:
        raise ConfigError("--gb applies to cached base models only", fix="Leave it out, or use --models.")
    if not 0 <= wanted < math.inf:
        raise ConfigError("must be a number of GB, 0 or more", subject=f"--gb {wanted:g}", fix="Write --gb 10.")
    if models:
        verbs.free_models(confirm=confirm, wanted=int(wanted * 1e9), report=report)
    elif unfinished:
        verbs.free_unfinished(confirm=confirm, root=root, report=report)
    else:
        kinds = [kind.value for kind in what or ()]
        verbs.free(name or "", kinds, confirm=confirm, root=root, report=report)
