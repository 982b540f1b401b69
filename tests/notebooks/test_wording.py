"""Messages in a notebook name cells and fields, not commands and options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdb
from fastdb import cli
from fastdb.notebook.wording import reworded

VERBS = "|".join(cli.VERBS)
COMMAND = re.compile(rf"(?<!!)\bfastdb ({VERBS})\b|(?<![\w-])--[a-z]|Ctrl-C")
PACKAGE = Path(fastdb.__file__).parent
SKIPPED = ("cli", "demo.py", "notebook")


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module but docstrings, with `{x}` where an f-string has a value."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    plain = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{x}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in plain | inside:
            yield node.value


def messages() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(SKIPPED):
            for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
                if COMMAND.search(text) and " " in text and not text.startswith(("usage", "#")):
                    yield name, text


def test_no_message_of_the_package_shows_a_command_in_a_notebook() -> None:
    found = list(messages())
    assert len(found) > 30, "the search finds the messages"
    left = [(name, reworded(text)) for name, text in found if COMMAND.search(reworded(text))]
    assert not left, "\n".join(f"{name}: {text}" for name, text in left)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "fastdb train my_dog --restart --set optimizer.max_grad_norm=0 --set resolution=64, or",
            "fastdb.train(session, restart=True, settings={'optimizer.max_grad_norm': 0, 'resolution': 64}), or",
        ),
        ("Stop it first: fastdb stop my_dog", "Stop it first: the tick stop in the Train cell"),
        ("Ctrl-C again returns to the prompt; it", "Interrupting again ends the cell; it"),
        ("Resume with: fastdb train my.dog-2", "Resume with the Train cell"),
        (
            "rate: fastdb train my_dog --from-step 40 --set unet.learning_rate=2e-07. If it happens again, leave fp16: "
            "fastdb train my_dog --set precision=fp32.",
            "rate: fastdb.train(session, from_step=40, settings={'unet.learning_rate': 2e-07}). If it happens again, "
            "leave fp16: fastdb.train(session, settings={'precision': 'fp32'}).",
        ),
        ("such as --set unet.steps=800.", "such as the setting unet.steps."),
        ("New session: /Sessions/anna--v2", "New session: /Sessions/anna--v2"),
        ("Deleted models--owner--base in /cache", "Deleted models--owner--base in /cache"),
        ("Two steps - nothing to reword", "Two steps - nothing to reword"),
    ],
)
def test_messages_stay_sentences(text: str, shown: str) -> None:
    assert reworded(text) == shown
