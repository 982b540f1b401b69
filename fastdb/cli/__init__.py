"""The command line: `fastdb <verb>`.

Verbs import what they need when they are called, so that --help is quick.
"""

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
    help="Teach Stable Diffusion a new subject from a handful of photos.",
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    root: Root = None,
    name: Annotated[str, typer.Option(help="Name of the new session.")] = "demo",
) -> None:
    """Run the whole journey on a small model, offline."""
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
    # Before a verb loads libraries whose warnings would surround its output.
    hush_libraries()
    app()
