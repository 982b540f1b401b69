"""Verb about this host: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli.options import Root
from fastdb.commands import doctor as verbs
from fastdb.console import ConsoleReport, show_examination


def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compute, detect faces, write a file and generate a picture.")
    ] = False,
    root: Root = None,
) -> None:
    """Show device, disks, packages and known problems.

    The exit code is 1 if there is a problem.
    """
    examination = verbs.doctor(verify=verify, root=root, report=ConsoleReport())
    show_examination(examination)
    if not examination.healthy:
        raise typer.Exit(1)
