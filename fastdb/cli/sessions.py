"""Verbs that make sessions, list them and show what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, Set, settings_of
from fastdb.console import boundary


def new(
    name: Annotated[str, typer.Argument(help="The new session's name.", show_default=False)],
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)
    ] = None,
    base: Annotated[
        str,
        typer.Option(help="The base model: `sd15`, a Hub repository, a link, a file or diffusers folder, or `mini`."),
    ] = "mini",
    token: Annotated[str, typer.Option(help="A rare word for the subject, such as sks.")] = "",
    class_word: Annotated[str, typer.Option("--class", help="The subject's class, such as dog.")] = "",
    root: Root = None,
    settings: Set = None,
) -> None:
    """Make a session, and add photos to it."""
    with boundary():
        from fastdb.commands import sessions

        sessions.new(
            name, base, photos or (), token=token, class_word=class_word, root=root, settings=settings_of(settings)
        )


def sessions(root: Root = None) -> None:
    """List the sessions."""
    with boundary():
        from fastdb.commands import sessions

        sessions.list_sessions(root)


def show(name: Name, root: Root = None) -> None:
    """Say what a session holds and how far its training is."""
    with boundary():
        from fastdb.commands import sessions

        sessions.show(name, root)


def check(
    name: Name,
    quick: Annotated[bool, typer.Option("--quick", help="Look at sizes, and do not read everything.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Take what you changed by hand for right.")] = False,
    root: Root = None,
) -> None:
    """Read everything a session holds, and say what is damaged or was changed since it came."""
    with boundary():
        from fastdb.commands import sessions

        sessions.check(name, quick=quick, accept=accept, root=root)


def add_images(
    name: Name,
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    root: Root = None,
) -> None:
    """Clean, crop and add photos; a .txt beside a photo becomes its caption."""
    with boundary():
        from fastdb.commands import sessions

        sessions.add_images(name, photos, root)
