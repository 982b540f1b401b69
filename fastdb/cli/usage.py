"""Usage errors of the command line as one sentence with a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from fastdb.errors import ConfigError

# typer 0.27 has its own copy of click, so the class cannot be imported from click.
UsageError: Any = typer.BadParameter.__base__


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a usage error of typer into a `ConfigError`; without arguments the help is shown."""
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError" or error.ctx is None:
            raise
        raise usage_error(error) from None


def usage_error(error: Any) -> ConfigError:
    """Return the error for arguments that a command does not accept."""
    command = error.ctx.command_path
    parameter: Any = getattr(error, "param", None)
    option = getattr(error, "option_name", "")
    pattern = f"Write it as: {' '.join([command, *error.ctx.command.collect_usage_pieces(error.ctx)])}"
    if type(error).__name__ == "MissingParameter":
        option = next((name for name in parameter.opts if name.startswith("--")), "")
        what = f"the option {option} is missing" if option else f"the argument {parameter.name!r} is missing"
        return ConfigError(what, where=command, fix=f"Add {option} and a value." if option else pattern)
    if type(error).__name__ == "NoSuchOption":
        fix = option_remedy(option, command, [name for known in error.ctx.command.params for name in known.opts])
        return ConfigError(f"has no option {option}", subject=command, fix=fix)
    if parameter is not None:
        where = f"{command} {next((name for name in parameter.opts if name.startswith('--')), parameter.name)}"
        kind = parameter.type
        if number := {"int": "a whole number", "float": "a number"}.get(kind.name.split()[0].removesuffix("eger")):
            least = getattr(kind, "min", None)
            bound = "" if least is None else f", {least} or more"
            return ConfigError(f"must be {number}{bound}", subject=where, fix="Correct it and run the command again.")
        return ConfigError(error.message.rstrip("."), where=where, fix="Correct it and run the command again.")
    extra = re.search(r"\((\d+)\)$", error.message.rstrip("."))
    if extra and any("--steps" in known.opts for known in error.ctx.command.params):
        return ConfigError(f"the number {extra[1]} has no option", where=command, fix=f"Write --steps {extra[1]}.")
    what = f"{error.message[:1].lower()}{error.message[1:].rstrip('.')}"
    return ConfigError(what, where=command, fix=pattern)


def option_remedy(option: str, command: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown option: a setting of that name, a similar option, or the help."""
    # fastdb --help needs neither pydantic nor yaml.
    from fastdb.config import Config, flat

    options = [name for name in known if name.startswith("--")]
    if near := difflib.get_close_matches(option, options, n=1, cutoff=0.75):
        return f"Did you mean {near[0]}?"
    plain = option.strip("-").replace("-", "_")
    names = [name for name, _ in flat(Config().model_dump()) if plain in (name, name.rpartition(".")[2])]
    if names and "--set" in options:
        # The UNet stage is what people mean by steps and learning rate.
        name = next((name for name in names if name.startswith("unet.")), names[0])
        return f"If you mean the setting, write --set {name}=VALUE."
    return f"List its options with: {command} --help"


def unknown_command(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a command that does not exist, with the nearest one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    fix = f"Did you mean fastdb {near[0]}?" if near else "List the commands with: fastdb --help"
    return ConfigError(f"there is no command {name!r}", fix=fix)
