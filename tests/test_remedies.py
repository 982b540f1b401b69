"""Commands that messages name exist, with the options that are named."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import fastdb
from fastdb.cli import VERBS

PACKAGE = Path(fastdb.__file__).parent
COMMAND = re.compile(r"fastdb (?P<verb>[a-z]+(?:-[a-z]+)*)(?P<rest>[^.;,)`]*)")
OPTION = re.compile(r"--[a-z][a-z-]*")
PROSE = {"and", "cannot", "from", "requires", "trains", "writes"}
"""Words after the name of the package in sentences about it."""


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield the strings of a module except docstrings; a value in an f-string is `X`."""
    docstrings = {
        ast.get_docstring(node, clean=False) for node in ast.walk(tree) if hasattr(node, "body") and has_doc(node)
    }
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in inner and node.value not in docstrings:
            yield str(node.value)


def has_doc(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


def named() -> dict[tuple[str, str], set[str]]:
    """The verbs that messages name with an option, or with an empty one, and the modules that name them."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for match in COMMAND.finditer(text):
                for option in [*OPTION.findall(match["rest"]), ""]:
                    found.setdefault((match["verb"], option), set()).add(path.relative_to(PACKAGE).as_posix())
    return found


def options(verb: str) -> set[str]:
    """The options of a verb on the command line."""
    function = getattr(importlib.import_module(f"fastdb.cli.{VERBS[verb][0]}"), verb.replace("-", "_"))
    given = set()
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        _, info = get_args(parameter.annotation)
        # typer puts the first name that is given without a keyword where a default would be.
        given |= {*(info.param_decls or ()), info.default, f"--{name.replace('_', '-')}"}
    return given


def test_every_command_that_a_message_names_can_be_run() -> None:
    commands = named()
    verbs = {verb for verb, _ in commands} & set(VERBS)
    assert len(verbs) >= 10
    unknown = {verb: places for (verb, _), places in commands.items() if verb not in {*VERBS, "demo", *PROSE}}
    assert unknown == {}
    wrong = {
        (verb, option): places
        for (verb, option), places in commands.items()
        if option and verb in VERBS and option not in options(verb)
    }
    assert wrong == {}


def test_an_unknown_option_would_be_found() -> None:
    assert "--accept" in options("check")
    assert "--accepted" not in options("check")
    assert [(m["verb"], OPTION.findall(m["rest"])) for m in COMMAND.finditer("run: fastdb check X --accepted")] == [
        ("check", ["--accepted"])
    ]
