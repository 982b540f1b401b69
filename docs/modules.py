"""Write the module list in docs/architecture.md from the modules' docstrings; `--check` compares only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("architecture.md")
PACKAGE = Path(__file__).resolve().parents[1] / "fastdb"
BEGIN, END = "<!-- modules: written by docs/modules.py -->\n", "<!-- end of modules -->\n"

ROOMS = [
    *("errors", "reporting", "config", "console", "version", "runtime", "storage", "formats", "downloads", "sessions"),
    *(
        "world",
        "models",
        "models/layouts",
        "models/lora",
        "images",
        "checkpoints",
        "measures",
        "inference",
        "training",
        "evaluation",
        "sharing",
    ),
    *("commands", "interactive", "cli", "notebook", "demo"),
]
"""In reading order, from the lowest layer up."""


def summary(path: Path) -> str:
    """Return the first line of a module's docstring, without the final stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def listing() -> str:
    """Return the section as it should be: a table per room."""
    lines: list[str] = []
    for room in ROOMS:
        single = PACKAGE / f"{room}.py"
        folder = PACKAGE / room
        files = [single] if single.is_file() else sorted(folder.glob("*.py"))
        head = "" if single.is_file() else f" {summary(folder / '__init__.py')}."
        lines += ["", f"**`{room}{'.py' if single.is_file() else '/'}`**{head}", ""]
        for path in files:
            if path.name != "__init__.py":
                lines.append(f"- `{path.name}`: {summary(path)}")
    return "\n".join([*lines, "", ""])


def page() -> str:
    """Return the page with the section replaced."""
    text = TARGET.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + listing() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page() else f"{TARGET.name} is stale: run docs/modules.py")
    TARGET.write_text(page(), encoding="utf-8")
