"""Generate the notebooks from their sources, or compare them with `--check`.

A cell starts with `# %% name` (code) or `# %% [markdown] name` (text as comments); the name is the cell's id. The line
`# %% include file` stands for the cells of `src/file.py`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).resolve().parent
NOTEBOOKS = {
    "fast_DreamBooth.py": "fast-DreamBooth.ipynb",
    "sessions.py": "sessions.ipynb",
    "pictures.py": "pictures.ipynb",
}
"""The notebook of each source in `src/`."""

RELEASE = ""
"""Address of the released wheel, with `#sha256=` and its checksum; empty until there is a release."""

_INCLUDE = re.compile(r"(?m)^# %% include (?P<name>[a-z_]+)\n")
_HEAD = re.compile(r"# %%(?P<markdown> \[markdown\])? (?P<name>[a-z][a-z0-9-]*)")


def build(source: str) -> nbformat.NotebookNode:
    """Return the notebook of a source.

    Raises:
        ValueError: a line is invalid.
    """
    cells: list[nbformat.NotebookNode] = []
    names: set[str] = set()
    head: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate([*_included(source).splitlines(), None], start=1):
        if line is not None and not line.startswith("# %%"):
            lines.append(_text(line, number) if head and head["markdown"] else line)
            continue
        if head is not None:
            cells.append(_cell(head, "\n".join(lines).strip("\n")))
        if line is None:
            break
        head, lines = _HEAD.fullmatch(line), []
        if head is None or head["name"] in names:
            raise ValueError(f"line {number}: {line!r} is not `# %% name` or `# %% [markdown] name` with a unique name")
        names.add(head["name"])
    metadata = {
        "accelerator": "GPU",
        "colab": {"provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return notebook


def rendered(source: str) -> str:
    """Return the content of a source's notebook."""
    return nbformat.writes(build((HERE / "src" / source).read_text(encoding="utf-8"))) + "\n"


def main(arguments: list[str]) -> None:
    """Write or check the notebooks."""
    if arguments not in ([], ["--check"]):
        sys.exit("usage: python notebooks/build.py [--check]")
    for source, name in NOTEBOOKS.items():
        notebook, text = HERE / name, rendered(source)
        if not arguments:
            notebook.write_text(text, encoding="utf-8")
        elif not notebook.exists() or notebook.read_text(encoding="utf-8") != text:
            sys.exit(f"{name} does not match src/{source}. Run python notebooks/build.py.")


def _included(source: str) -> str:
    """Return a source with the cells of the files it includes, and the address of the release in them."""

    def cells(found: re.Match[str]) -> str:
        text = (HERE / "src" / f"{found['name']}.py").read_text(encoding="utf-8")
        return text[text.index("# %%") :].replace('default=""', f'default="{RELEASE}"') + "\n"

    return _INCLUDE.sub(cells, source)


def _cell(head: re.Match[str], text: str) -> nbformat.NotebookNode:
    if head["markdown"]:
        return new_markdown_cell(text, id=head["name"])
    text = "\n".join(line for line in text.splitlines() if line.strip())
    form = {"cellView": "form"} if text.startswith("# @title") else {}
    return new_code_cell(text, id=head["name"], metadata=form)


def _text(line: str, number: int) -> str:
    """Return a line of a markdown cell without its comment sign."""
    if line and line != "#" and not line.startswith("# "):
        raise ValueError(f"line {number}: {line!r} is not a comment, in a markdown cell")
    return line[2:]


if __name__ == "__main__":
    main(sys.argv[1:])
