"""The command line: `fastdb <verb>`.

Each verb is a function of a module of this folder, which is imported when the verb is called, so that --help is quick.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastdb.cli.options import Root
from fastdb.cli.usage import one_sentence, unknown_command
from fastdb.console import boundary, say, whole_output
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.version import __version__

VERBS = {
    "new": ("sessions", "Create a session and add photos to it."),
    "change": ("sessions", "Change a session before its training begins."),
    "sessions": ("sessions", "List the sessions."),
    "show": ("sessions", "Show what a session contains and how far its training is."),
    "check": ("sessions", "Verify every file of a session against its checksum."),
    "add-images": ("sessions", "Clean, crop and add photos."),
    "remove-images": ("sessions", "Take photos out of a session."),
    "train": ("training", "Train a session, or resume."),
    "try-token": ("training", "Try tokens with the untrained base model."),
    "extend": ("training", "Add steps to a session; `fastdb train` then runs them."),
    "stop": ("training", "Ask a running trainer to save a checkpoint and stop."),
    "publish": ("training", "Publish local checkpoints to the session."),
    "export": ("results", "Export the trained model to one file, verified."),
    "convert": ("models", "Convert a model to another layout or precision."),
    "generate": ("results", "Generate images from a session or an exported file."),
    "evaluate": ("results", "Compare checkpoints on the same prompts; choose the best."),
    "merge": ("lora", "Merge LoRAs into a base model."),
    "extract": ("lora", "Extract a LoRA from a session that trained all weights."),
    "inspect": ("models", "Show what a model file contains, running no code in it."),
    "rename": ("folders", "Rename a session and its exports."),
    "delete": ("folders", "Delete a session for good after a confirmation."),
    "space": ("space", "Show the disk usage of sessions and cached models."),
    "free": ("space", "Delete files for good after a confirmation."),
    "doctor": ("doctor", "Show device, disks, packages and known problems."),
    "share": ("sharing", "Write a session to a zip: photos, captions, settings."),
    "adopt": ("sharing", "Create a session from a zip, a folder or a link."),
    "duplicate": ("sharing", "Copy photos, captions and settings to a new session."),
}
"""Module of each verb, and its line in `fastdb --help`: the first sentence of its function's docstring."""

ALIASES = {
    "list": "sessions",
    "ls": "sessions",
    "status": "show",
    "info": "show",
    "resume": "train",
    "continue": "train",
    "sample": "generate",
    "mv": "rename",
    "rm": "delete",
    "remove": "delete",
    "copy": "duplicate",
    "import": "adopt",
}
"""Words of other programs that people type, and their verbs."""

PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""Options of typer, for help texts and errors without boxes."""


class Verbs(TyperGroup):
    """The verbs; the one that is called replaces its line of `fastdb --help`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the module of the verb that is called."""
        args = [ALIASES.get(args[0], args[0]), *args[1:]]
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_command(args[0], [*self.commands, *ALIASES])
        name, command, rest = super().resolve_command(ctx, args)
        if name in VERBS:
            verb = typer.Typer(**PLAIN)
            verb.command(name)(getattr(importlib.import_module(f"fastdb.cli.{VERBS[name][0]}"), name.replace("-", "_")))
            command = typer.main.get_command(verb)
        return name, command, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the verb; errors are one line."""
        with boundary(), one_sentence():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that is called; its errors are one line."""
        with boundary(), one_sentence():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
    name="fastdb",
    help="Teach Stable Diffusion a new subject from a handful of photos.",
    no_args_is_help=True,
    **PLAIN,
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
    from fastdb.demo import run_demo

    run_demo(root=root, name=name)


for _verb, (_, _line) in VERBS.items():
    app.command(_verb, help=_line)(lambda: None)


def main() -> None:
    """Run the command line."""
    # Before a verb loads libraries whose warnings would surround its output.
    prepare_libraries()
    with whole_output():
        app()
