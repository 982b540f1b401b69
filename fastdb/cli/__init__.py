"""`fastdb <verb>`: the command line. Verbs import what they need when they are called, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli import models, results, sessions, sharing, space, training
from fastdb.cli.options import Root
from fastdb.console import boundary, say
from fastdb.runtime.library_logging import hush_libraries
from fastdb.version import __version__

app = typer.Typer(
    name="fastdb",
    help="Teach Stable Diffusion a new subject from a handful of photos; stop and go on at any time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"fastdb {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    root: Root = None,
    name: Annotated[str, typer.Option(help="The new session's name.")] = "demo",
) -> None:
    """The whole journey on a small model, offline: photos to checkpoint file, with an interruption on purpose."""
    with boundary():
        from fastdb.demo import run_demo

        run_demo(root=root, name=name)


for verb in (
    sessions.new,
    sessions.sessions,
    sessions.show,
    sessions.check,
    sessions.add_images,
    training.train,
    training.extend,
    training.stop,
    training.publish,
    results.export,
    models.convert,
    results.generate,
    results.evaluate,
    models.inspect,
    space.space,
    space.free,
    sharing.share,
    sharing.adopt,
    sharing.duplicate,
):
    app.command()(verb)


def main() -> None:
    """Run the command line."""
    # What libraries tell developers while they load would stand around the lines a person is to read.
    hush_libraries()
    app()
