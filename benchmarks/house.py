"""Measure the package: start-up times, sizes, imports, public functions and wording.

    python benchmarks/house.py [REPOSITORY]

REPOSITORY is another checkout to measure, this one by default. Times are medians of fresh interpreters. A line of code
holds more than space, a comment or a docstring. The docstring of each function below defines its figure.
"""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import statistics
import subprocess
import sys
import time
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = 9
TOP = 5

ORDER = [
    "__main__",
    "cli",
    "notebook",
    "demo",
    "interactive",
    "commands",
    "sharing",
    "evaluation",
    "training",
    "inference",
    "measures",
    "checkpoints",
    "images",
    "models",
    "world",
    "downloads",
    "sessions",
    "formats",
    "storage",
    "runtime",
    "config",
    "console",
    "reporting",
    "errors",
    "version",
]
"""Rooms of the package from the front door down; imports point down only."""

IMPORT = "import time; began = time.perf_counter(); import fastdb; print(time.perf_counter() - began)"

Trees = Mapping[str, ast.Module]
"""Every module of the package by its dotted name, parsed."""


def parse_package(repository: Path) -> dict[str, ast.Module]:
    """Parse every module of `fastdb/`."""
    trees = {}
    for path in python_files(repository / "fastdb"):
        parts = path.relative_to(repository).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def python_files(folder: Path) -> list[Path]:
    """Return the Python files below a folder."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def room(module: str) -> str:
    """Return the folder or module directly in `fastdb/` that a module is in; "" for `fastdb` itself."""
    return module.split(".")[1] if "." in module else ""


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node below a tree except those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def imports(trees: Trees, module: str, *, top_level: bool = False) -> Iterator[str]:
    """Yield the `fastdb` modules that a module imports when it runs, at any depth of its code or at its top level only.

    Raises:
        ValueError: an import is relative.
    """
    for node in trees[module].body if top_level else runtime_nodes(trees[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module}:{node.lineno} imports relatively")
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in trees else str(node.module) for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "fastdb" and name != "fastdb")


def rooms(repository: Path) -> list[str]:
    """Return the rooms: folders below `fastdb/` that hold modules, at any depth, and modules directly in `fastdb/`."""
    package = repository / "fastdb"
    places = (path.parent if path.parent != package else path for path in python_files(package))
    return sorted({place.relative_to(package).with_suffix("").as_posix() for place in places})


def largest_room(repository: Path) -> tuple[str, float]:
    """Return the folder or module directly in `fastdb/` with the most lines of text, and its share of all lines."""
    package = repository / "fastdb"
    lines: Counter[str] = Counter()
    for path in python_files(package):
        parts = path.relative_to(package).with_suffix("").parts
        lines[parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    name, most = lines.most_common(1)[0]
    return name, most / lines.total()


def import_depth(trees: Trees) -> list[str]:
    """Return the longest chain of modules in which each imports the next at its top level."""
    graph = {module: set(imports(trees, module, top_level=True)) - {module} for module in trees}

    @functools.cache
    def longest(module: str) -> tuple[str, ...]:
        return (module, *max((longest(other) for other in sorted(graph.get(module, ()))), key=len, default=()))

    return list(max((longest(module) for module in graph), key=len))


def deferred_imports(trees: Trees) -> int:
    """Count the import statements inside functions that import from `fastdb`."""
    found = set()
    for module, tree in trees.items():
        for function in functions(tree):
            for node in ast.walk(function):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "fastdb" for name in names):
                    found.add((module, node.lineno))  # type: ignore[attr-defined]
    return len(found)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function below a tree: methods, properties and nested functions too."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_functions(trees: Trees) -> int:
    """Count the function definitions, methods and nested functions included, without a leading underscore."""
    return sum(not function.name.startswith("_") for tree in trees.values() for function in functions(tree))


def words_per_thousand(trees: Trees, *words: str) -> float:
    """Return how many of 1,000 words in string constants (messages and docstrings) are among `words`."""
    constants = (
        node.value
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    counts = Counter(word.lower() for text in constants for word in re.findall(r"[A-Za-z']+", text))
    return 1000 * sum(counts[word] for word in words) / counts.total()


def cycle(trees: Trees) -> list[str]:
    """Return the modules of an import cycle, imports inside functions included; empty without a cycle."""
    graph = {module: set(imports(trees, module)) - {module} for module in trees if room(module)}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(trees: Trees) -> list[str]:
    """Return the imports, at any depth of the code, of a room that comes earlier in `ORDER`."""
    place = {name: number for number, name in enumerate(ORDER)}
    return [
        f"{module} imports {other}"
        for module in trees
        if room(module)
        for other in imports(trees, module)
        if place.get(room(other), -1) < place.get(room(module), -1)
    ]


def code_lines(text: str) -> int:
    """Count the lines of Python source that hold code."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone as a statement is a docstring or documents the constant above it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def run_python(repository: Path, *arguments: str) -> str:
    """Run a fresh interpreter and return its output; the checkout goes before an installed package."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=repository).stdout


def import_seconds(repository: Path) -> float:
    """Return the seconds that `import fastdb` takes."""
    return statistics.median(float(run_python(repository, "-c", IMPORT)) for _ in range(TIMES))


def help_seconds(repository: Path) -> float:
    """Return the seconds from calling `fastdb --help` to its end, the interpreter's own start included."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        run_python(repository, "-m", "fastdb", "--help")
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def print_structure(repository: Path, trees: Trees) -> None:
    """Print rooms, imports, public functions and wording."""
    name, share = largest_room(repository)
    chain, loop, upward = import_depth(trees), cycle(trees), upward_imports(trees)
    print(f"rooms               {len(rooms(repository)):7}   folders with modules, and modules directly in fastdb/")
    print(f"largest room        {share:7.0%}   of the lines: {name}")
    print(f"import depth        {len(chain):7}   from {chain[0]} down to {chain[-1]}")
    print(f"deferred imports    {deferred_imports(trees):7}   statements inside functions that import from fastdb")
    print(f"import cycles       {bool(loop):7}   {' -> '.join(loop)}")
    if {room(module) for module in trees if room(module)} <= set(ORDER):
        print(f"upward imports      {len(upward):7}   {', '.join(upward[:3])}")
    else:
        print("upward imports            -   the rooms are not those of ORDER")
    print(f"public functions    {public_functions(trees):7}")
    say = words_per_thousand(trees, "say", "says", "said", "tell", "tells", "told")
    print(f"say or tell         {say:7.1f}   in 1,000 words of string constants")
    print(f"one or ones         {words_per_thousand(trees, 'one', 'ones'):7.1f}   the same")


def print_sizes(repository: Path, trees: Trees) -> None:
    """Print the longest functions, the largest files and the lines of code."""
    sizes = sorted(
        (
            ((function.end_lineno or 0) - function.lineno + 1, f"{module}:{function.lineno} {function.name}")
            for module, tree in trees.items()
            for function in functions(tree)
        ),
        reverse=True,
    )
    print(f"\nlongest functions of fastdb/ (lines), of {len(sizes)}")
    for lines, place in sizes[:TOP]:
        print(f"  {lines:5}  {place}")
    package = python_files(repository / "fastdb")
    texts = {path: path.read_text(encoding="utf-8") for path in [*package, *python_files(repository / "tests")]}
    print("\nlargest files of fastdb/ (lines)")
    for lines, path in sorted(((len(texts[path].splitlines()), path) for path in package), reverse=True)[:TOP]:
        print(f"  {lines:5}  {path.relative_to(repository)}")
    counts = {path: code_lines(text) for path, text in texts.items()}
    program = sum(counts[path] for path in package)
    tests = sum(counts.values()) - program
    named = [path for path in package if path.name != "__init__.py"]
    print(f"\nlines of code       {program} in fastdb/, {tests} in tests/, a ratio of {tests / program:.2f}")
    print(f"modules             {len(named)} in fastdb/ beside {len(package) - len(named)} __init__.py")
    print(f"lines of code each  median {statistics.median(counts[path] for path in named):.0f}")


def main() -> None:
    """Print the figures."""
    repository = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else REPOSITORY
    trees = parse_package(repository)
    print(f"import fastdb       {import_seconds(repository) * 1000:7.1f}   ms, median of {TIMES} fresh interpreters")
    print(f"fastdb --help       {help_seconds(repository) * 1000:7.1f}   ms, the same, from call to end\n")
    print_structure(repository, trees)
    print_sizes(repository, trees)


if __name__ == "__main__":
    main()
