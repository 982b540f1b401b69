"""Verbs about sessions: new, sessions, show, check, add-images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, Set
from fastdb.commands import sessions as verbs
from fastdb.commands.follow import follow as follow_training
from fastdb.config import parse_settings
from fastdb.console import ConsoleReport, show_overview, show_sessions


def new(
    name: Annotated[str, typer.Argument(help="Name of the new session.", show_default=False)],
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="Base model, required: sd15, a Hub repository, a link, a file, a diffusers folder, or mini.",
            show_default=False,
        ),
    ] = "",
    token: Annotated[str, typer.Option(help="A rare word for the subject, such as sks.")] = "",
    class_word: Annotated[str, typer.Option("--class", help="The subject's class, such as dog.")] = "",
    root: Root = None,
    settings: Set = None,
) -> None:
    """Create a session and add photos to it."""
    verbs.new(
        name,
        base,
        photos or (),
        token=token,
        class_word=class_word,
        root=root,
        settings=parse_settings(settings or ()),
        report=ConsoleReport(),
    )


def sessions(root: Root = None) -> None:
    """List the sessions."""
    show_sessions(verbs.list_sessions(root))


def show(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow a running training; Ctrl-C leaves it running.")
    ] = False,
    root: Root = None,
) -> None:
    """Show what a session contains and how far its training is."""
    show_overview(verbs.show(name, root))
    if follow:
        follow_training(name, root, report=ConsoleReport())


def check(
    name: Name,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Accept the current files, with your changes.")] = False,
    root: Root = None,
) -> None:
    """Verify every file of a session against its checksum."""
    verbs.check(name, quick=quick, accept=accept, root=root, report=ConsoleReport())


def add_images(
    name: Name,
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    root: Root = None,
) -> None:
    """Clean, crop and add photos. A .txt beside a photo becomes its caption."""
    verbs.add_images(name, photos, root, report=ConsoleReport())
