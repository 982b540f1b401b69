"""Verbs that tell what sessions cost, and give space back."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fastdb.cli.options import Root
from fastdb.console import boundary
from fastdb.errors import ConfigError


class What(StrEnum):
    """Kinds of files that can be removed."""

    set_aside = "set-aside"
    exports = "exports"
    samples = "samples"
    checkpoints = "checkpoints"
    unfinished = "unfinished"
    class_images = "class-images"


def space(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SESSION]...", help="Sessions to look at closely.", show_default=False),
    ] = None,
    root: Root = None,
) -> None:
    """Say what sessions, their checkpoints and the models on this machine cost, and what is free."""
    with boundary():
        from fastdb.commands import space as verbs

        verbs.space(names or (), root)


def free(
    name: Annotated[
        str | None, typer.Argument(metavar="[SESSION]", help="The session's name, or its folder.", show_default=False)
    ] = None,
    what: Annotated[list[What] | None, typer.Option(help="Kind of files; may be given many times.")] = None,
    models: Annotated[bool, typer.Option("--models", help="Fetched base models, least recently used first.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Folders that were to become sessions and never did, a day old.")
    ] = False,
    wanted: Annotated[float, typer.Option("--gb", help="With --models: stop after so many GB; 0 removes all.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: Root = None,
) -> None:
    """Remove files for good, after a question. What training needs to go on is never among them."""
    with boundary():
        from fastdb.commands import space as verbs

        def confirm(question: str) -> bool:
            return yes or typer.confirm(question)

        if (name is not None) + models + unfinished != 1 or (what and name is None):
            raise ConfigError(
                "takes either a session and --what, or --models, or --unfinished",
                where="fastdb free",
                fix="Name one of them.",
            )
        if models:
            verbs.free_models(confirm=confirm, wanted=int(wanted * 1e9))
        elif unfinished:
            verbs.free_unfinished(confirm=confirm, root=root)
        else:
            verbs.free(name or "", [kind.value for kind in what or ()], confirm=confirm, root=root)
