"""Errors are a single line with subject and remedy."""

from __future__ import annotations

import ast
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest

from fastdb import errors
from fastdb.errors import FastDBError

PACKAGE = Path(errors.__file__).parent


def test_an_error_has_subject_reason_and_remedy() -> None:
    error = FastDBError("is damaged", subject=Path("a") / "photo.jpg", fix="Copy it again.")
    assert str(error) == f"{Path('a') / 'photo.jpg'} is damaged. Copy it again."
    assert error.problem == f"{Path('a') / 'photo.jpg'} is damaged"
    assert (error.what, error.where, error.fix) == ("is damaged", Path("a") / "photo.jpg", "Copy it again.")
    assert str(FastDBError("the disk is full")) == "the disk is full"
    assert str(FastDBError("the disk is full", where=0)) == "0: the disk is full"
    assert str(FastDBError("is too small", subject=0)) == "0 is too small"


def test_the_tree_at_the_top_is_the_tree() -> None:
    family = {name: kind for name, kind in vars(errors).items() if name in errors.__all__}
    assert len(family) == 12
    assert sorted(family) == sorted(errors.__all__) == errors.__all__
    drawn, above = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        word = re.match(r"[ ├└─│]*(\w+)", line)
        name = word[1] if word else ""
        if name in family:
            depth = line.index(name)
            drawn[name] = above.get(max((d for d in above if d < depth), default=None))
            above = {d: n for d, n in above.items() if d < depth} | {depth: name}
    assert drawn.keys() == family.keys()
    for name, kind in family.items():
        assert kind.__bases__[0].__name__ == (drawn[name] or "Exception"), name
        assert kind.__doc__


def test_a_notebook_shows_the_line_and_no_traceback() -> None:
    assert FastDBError("is damaged", fix="Copy it again.")._render_traceback_() == ["error: is damaged. Copy it again."]


def test_an_error_survives_a_process_border() -> None:
    error = errors.SessionBusy("is being trained", subject="dog", fix="Wait.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.SessionBusy
    assert (str(copy), copy.what, copy.where, copy.fix) == (str(error), error.what, error.where, error.fix)


WITHOUT_A_WAY_OUT = Counter({"demo.py": 1, "models/diffusers_folder.py": 2, "models/loading.py": 2})
"""How many a file has that say only what happened. May shrink, never grow."""


def raised() -> list[tuple[str, ast.Call]]:
    """Every place in the package that makes one of the family, with its file."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__:
                found.append((f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}", node))
    return found


def test_each_that_is_raised_says_what_to_do_in_a_sentence() -> None:
    calls = raised()
    assert len(calls) >= 80, "where have they gone?"
    without: Counter[str] = Counter()
    for place, call in calls:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if place.startswith("commands/training.py") and not given and isinstance(call.args[0], ast.Subscript):
            continue  # the trainer's own line, passed on as it is
        fix = given.get("fix")
        if fix is None:
            without[place.split(":")[0]] += 1
        elif isinstance(fix, ast.Constant):
            assert str(fix.value).endswith((".", "?", '"')) or "fastdb " in str(fix.value), (place, fix.value)
        what = call.args[0] if call.args else given["what"]
        if isinstance(what, ast.Constant):
            assert not str(what.value).endswith("."), place
    assert without <= WITHOUT_A_WAY_OUT, "each tells what to do now"


PREDICATE = re.compile(
    r"(is|are|was|were|has|have|had|does|do|did|cannot|can|could|may|must|will|would|exists?|contains?|needs?|changed"
    r"|generates?|lacks?|holds?|returns?|returned|belongs?|began|ended)\b"
)
"""How a predicate begins. `subject` needs one; after `where` and a colon it would be no sentence."""

FRAGMENT = re.compile(r"(no such|not|missing|unknown|unexpected|unsupported|invalid)\b")
"""How a clause without a verb began."""


def beginnings(node: ast.expr, assigned: list[tuple[ast.expr, ast.expr]]) -> list[str]:
    """How the text of an expression can begin; empty where it is made elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return [text]
        case ast.IfExp(body=body, orelse=other):
            return beginnings(body, assigned) + beginnings(other, assigned)
        case ast.BinOp(left=left):
            return beginnings(left, assigned)
        case ast.Name(id=name):
            values = [value for target, value in assigned if isinstance(target, ast.Name) and target.id == name]
            return [text for value in values for text in beginnings(value, [])]
    return []


def malformed(tree: ast.Module) -> list[str]:
    """The beginnings of raised problems that make no sentence together with their subject or place."""
    wrong: list[str] = []
    assigned: list[tuple[ast.expr, ast.expr]] = []
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(node, ast.FunctionDef):
            assigned = []
        if isinstance(node, ast.Assign):
            targets, value = node.targets[0], node.value
            pair = isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)
            assigned += zip(targets.elts, value.elts, strict=False) if pair else [(targets, value)]
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__):
            continue
        given = {keyword.arg for keyword in node.keywords}
        for text in beginnings(node.args[0], assigned):
            if bool(PREDICATE.match(text)) != ("subject" in given) or FRAGMENT.match(text):
                wrong.append(f"{node.lineno} {text}")
        assigned = []
    return wrong


def test_each_message_is_a_sentence_with_its_subject() -> None:
    wrong = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if faults := malformed(ast.parse(path.read_text(encoding="utf-8"))):
            wrong[path.relative_to(PACKAGE).as_posix()] = faults
    assert wrong == {}


@pytest.mark.parametrize(
    "line",
    [
        "raise SessionBusy('is being trained', where=name)",
        "raise SessionBusy('the trainer runs', subject=name)",
        "raise ModelError(f'no such file ({path})', where=path)",
        "raise ModelError('missing', where=path)",
        "def f():\n what = f'lacks {name}'\n raise ModelError(what, where=path)",
        "raise ImageError('is empty' if size else 'the file is empty', where=path)",
    ],
)
def test_a_message_that_is_no_sentence_is_found(line: str) -> None:
    assert malformed(ast.parse(line))


@pytest.mark.parametrize("name", errors.__all__)
def test_each_kind_is_caught_as_one_of_the_family(name: str) -> None:
    assert issubclass(getattr(errors, name), FastDBError)
