"""The house in figures: what it costs to open the door, and how large it is.

    python benchmarks/house.py

Times are medians of fresh interpreters. A line of code is one that holds more than space, a comment or a docstring.
"""

from __future__ import annotations

import ast
import io
import os
import statistics
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = 9
TOP = 5

IMPORT = "import time; began = time.perf_counter(); import fastdb; print(time.perf_counter() - began)"


def python(*arguments: str) -> str:
    """What a fresh interpreter prints; this checkout goes before an installed package."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def import_seconds() -> float:
    """Seconds that `import fastdb` takes."""
    return statistics.median(float(python("-c", IMPORT)) for _ in range(TIMES))


def help_seconds() -> float:
    """Seconds from calling `fastdb --help` to its end, the interpreter's own start included."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        python("-m", "fastdb", "--help")
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def modules(room: str) -> list[Path]:
    """The Python files below a folder of the repository."""
    return sorted(path for path in (REPOSITORY / room).rglob("*.py") if "__pycache__" not in path.parts)


def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Every function of a file: its lines from `def` to its end, and its place."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield lines, f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"


def code_lines(text: str) -> int:
    """The lines of Python source that hold code."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone as a statement documents what is around it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the figures."""
    print(f"import fastdb       {import_seconds() * 1000:7.1f} ms   median of {TIMES} fresh interpreters")
    print(f"fastdb --help       {help_seconds() * 1000:7.1f} ms   the same, from call to end")
    package, tests = modules("fastdb"), modules("tests")
    print(f"\nlongest functions of fastdb/ (lines), of {sum(1 for path in package for _ in functions(path))}")
    for lines, place in sorted((one for path in package for one in functions(path)), reverse=True)[:TOP]:
        print(f"  {lines:5}  {place}")
    print("\nlargest files of fastdb/ (lines)")
    sizes = [(len(path.read_text(encoding="utf-8").splitlines()), path) for path in package]
    for lines, path in sorted(sizes, reverse=True)[:TOP]:
        print(f"  {lines:5}  {path.relative_to(REPOSITORY)}")
    ours, theirs = (sum(code_lines(path.read_text(encoding="utf-8")) for path in room) for room in (package, tests))
    named = [path for path in package if path.name != "__init__.py"]
    print(f"\nlines of code       fastdb/ {ours}, tests/ {theirs}: {theirs / ours:.2f} of test to one of program")
    print(f"modules             {len(named)} in fastdb/ beside {len(package) - len(named)} __init__.py")
    print(f"lines of code each  median {statistics.median(code_lines(path.read_text('utf-8')) for path in named):.0f}")


if __name__ == "__main__":
    main()
