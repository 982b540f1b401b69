"""The language of the package: phrases that readers stumbled over, and the form of docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdb.console import SENTENCES

PACKAGE = Path(__file__).resolve().parents[1] / "fastdb"

BANNED = (
    r"(is|are) passed over",
    r"(goes|went|gone|going) on (from|with)",
    r"taken for right",
    r"in little room",
    r"held against",
    r"as it lies",
    r"begin(s)? anew",
    r"for want of",
    r"what (was|is) (said|told|shared)",
    r"is no way to",
    r"of its own accord",
    r"stopped by you",
    r"other arithmetic",
    r"cannot be looked at",
    r"on this machine alone",
)
"""In strings that people read; each stood in a message once. Keep this short."""

LONGEST_SUMMARY = 24
"""Words of a docstring's first line."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Yield each module of the package with its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def strings(tree: ast.Module) -> Iterator[str]:
    """Yield the string constants of a module, docstrings and parts of f-strings among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())


@pytest.mark.parametrize("phrase", BANNED)
def test_no_string_contains_a_banned_phrase(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase}\b", re.IGNORECASE)
    texts = [(name, text) for name, tree in trees() for text in strings(tree)]
    assert len(texts) > 3000
    assert [(name, text) for name, text in texts if pattern.search(text)] == []


def test_the_search_finds_a_banned_phrase() -> None:
    tree = ast.parse("raise E(f'the file {name}\\nis  passed over')")
    assert any(re.search(BANNED[0], text) for text in strings(tree))


def test_docstrings_begin_with_one_short_line() -> None:
    seen, wrong = 0, []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node)
            if text is None:
                continue
            seen += 1
            first, _, rest = text.partition("\n")
            if len(first.split()) > LONGEST_SUMMARY or rest.split("\n")[0].strip():
                wrong.append(f"{name}:{getattr(node, 'lineno', 1)} {first}")
    assert seen > 900
    assert wrong == []


def test_every_note_has_a_sentence_and_every_sentence_a_note() -> None:
    kinds = {
        call.args[0].value
        for _, tree in trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Note"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert len(kinds) > 50
    assert kinds - set(SENTENCES) == set()
    for kind, text in SENTENCES.items():
        assert text.format(subject="S", reason="R"), kind
