"""Verbs about sessions: new, sessions, show, check, add-images, remove-images."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, Set, path
from fastdb.commands import changed_photos, session_changes
from fastdb.commands import sessions as verbs
from fastdb.commands.follow import follow as follow_training
from fastdb.config import parse_settings
from fastdb.console import ConsoleReport, show_overview, show_sessions
from fastdb.errors import ConfigError
from fastdb.images.photo_files import PHOTO_ENDINGS, photos_in
from fastdb.reporting import Note


def new(
    name: Annotated[str, typer.Argument(help="Name of the new session.", show_default=False)],
    photos: Annotated[
        list[Path] | None, typer.Argument(parser=path, help="Photos, or folders of photos.", show_default=False)
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
    source: Annotated[
        str,
        typer.Option("--from", help="Instead of --base: SESSION or SESSION:STEP, whose weights to begin with."),
    ] = "",
    method: Annotated[
        str, typer.Option(help="full, or lora for small files; short for --set method=lora.", show_default=False)
    ] = "",
    root: Root = None,
    settings: Set = None,
) -> None:
    """Create a session and add photos to it."""
    _check_name_given(name, photos or ())
    report = ConsoleReport()
    if source and base:
        raise ConfigError("--base and --from cannot be combined", fix="Leave out one of them.")
    session = (changed_photos.new_from if source else verbs.new)(
        name,
        source or base,
        photos or (),
        token=token,
        class_word=class_word,
        root=root,
        settings={**parse_settings(settings or (), report), **({"method": method} if method else {})},
        report=report,
    )
    if not photos:
        report.note(Note("no photos yet", session.name))


def _check_name_given(name: str, photos: Sequence[Path]) -> None:
    """Raise if the only argument is a photo or a folder of photos, so that the name was forgotten.

    Raises:
        ConfigError: photos have that path.
    """
    path = Path(name)
    is_photo = path.suffix.lower() in PHOTO_ENDINGS and path.is_file()
    if not photos and (is_photo or (path.is_dir() and photos_in(path))):
        raise ConfigError(
            f"{name} contains photos, but a session needs a name too",
            fix=f"Put the name first: fastdb new NAME {shlex.quote(name)}",
        )


def change(
    name: Name,
    base: Annotated[str, typer.Option(help="Another base model.", show_default=False)] = "",
    token: Annotated[str, typer.Option(help="Another token.", show_default=False)] = "",
    class_word: Annotated[str, typer.Option("--class", help="Another class.", show_default=False)] = "",
    root: Root = None,
    settings: Set = None,
) -> None:
    """Change a session before its training begins."""
    report = ConsoleReport()
    session_changes.change(
        name,
        base=base,
        token=token,
        class_word=class_word,
        settings=parse_settings(settings or (), report),
        root=root,
        report=report,
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
    photos: Annotated[
        list[Path], typer.Argument(parser=path, help="Photos, or folders of photos.", show_default=False)
    ],
    root: Root = None,
) -> None:
    """Clean, crop and add photos. A .txt beside a photo becomes its caption."""
    verbs.add_images(name, photos, root, report=ConsoleReport())


def remove_images(
    name: Name,
    images: Annotated[list[str], typer.Argument(help="Names of instance images.", show_default=False)],
    root: Root = None,
) -> None:
    """Take photos out of a session. They are moved aside, not deleted."""
    changed_photos.remove_images(name, images, root=root, report=ConsoleReport())
