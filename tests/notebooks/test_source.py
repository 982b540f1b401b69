"""The notebook matches its source and consists of forms."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re
import subprocess
import sys
import typing
from types import ModuleType

import nbformat
import pytest

import fastdb
import fastdb.notebook
from fastdb.checkpoints.disk_usage import REMOVABLE
from fastdb.cli.results import Format
from fastdb.commands import results
from tests.notebooks.kernel import FIELD, NOTEBOOK, REPOSITORY

BUILD = REPOSITORY / "notebooks" / "build.py"
CODE = {
    path.stem: [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for path in sorted(NOTEBOOK.parent.glob("*.ipynb"))
}
CELLS = [(name, cell) for name, cells in CODE.items() for cell in cells]
each_cell = pytest.mark.parametrize("cell", [cell for _, cell in CELLS], ids=[f"{name}-{c.id}" for name, c in CELLS])


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_what_its_source_says(build):
    for source, name in build.NOTEBOOKS.items():
        assert (NOTEBOOK.parent / name).read_text(encoding="utf-8") == build.rendered(source)


def test_check_tells_when_they_differ(tmp_path):
    (tmp_path / "src").mkdir()
    for name in [
        path.relative_to(NOTEBOOK.parent) for path in NOTEBOOK.parent.rglob("*") if path.suffix in (".py", ".ipynb")
    ]:
        (tmp_path / name).write_bytes((REPOSITORY / "notebooks" / name).read_bytes())

    def check(*arguments):
        done = subprocess.run([sys.executable, tmp_path / "build.py", *arguments], capture_output=True, text=True)
        return done.returncode, done.stderr.count("\n"), done.stderr

    assert check("--check") == (0, 0, "")
    source = tmp_path / "src" / "fast_DreamBooth.py"
    source.write_text(source.read_text(encoding="utf-8").replace("# ## 5 · Train", "# ## 5 · Teach"), encoding="utf-8")
    code, lines, said = check("--check")
    assert (code, lines) == (1, 1)
    assert "Run python notebooks/build.py" in said
    assert check()[0] == 0
    assert check("--check")[0] == 0
    assert "5 · Teach" in (tmp_path / "fast-DreamBooth.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("# %% Bad Name\n", 1),
        ("# %% one\nx = 1\n# %% one\n", 3),
        ("# %% [raw] one\n", 1),
        ("# %% [markdown] one\n# text\nx = 1\n", 3),
    ],
)
def test_a_source_that_cannot_be_placed_names_the_line(build, source, line):
    with pytest.raises(ValueError, match=rf"^line {line}: "):
        build.build(source)


def test_cells_keep_their_order_text_and_names(build):
    made = build.build(
        '"""Not a cell."""\n\n# %% [markdown] hello\n# # Hi\n#\n# there\n\n# %% one\n# @title One\nx = 1\n'
    )
    assert [(cell.id, cell.cell_type, cell.source) for cell in made.cells] == [
        ("hello", "markdown", "# Hi\n\nthere"),
        ("one", "code", "# @title One\nx = 1"),
    ]
    assert made.cells[1].metadata == {"cellView": "form"}


def test_the_set_up_cell_gets_the_release(build, monkeypatch):
    plain = build.build("# %% include set_up\n").cells[1].source
    assert plain.count('default=""') == 1
    monkeypatch.setattr(build, "RELEASE", "https://example.org/fast_dreambooth-1.0-py3-none-any.whl#sha256=00")
    cell = build.build("# %% include set_up\n").cells[1].source
    assert cell == plain.replace('default=""', f'default="{build.RELEASE}"')


def test_metadata_is_what_colab_and_jupyter_read():
    plain = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert plain["metadata"]["accelerator"] == "GPU"
    assert plain["metadata"]["kernelspec"]["name"] == "python3"
    assert (plain["nbformat"], plain["nbformat_minor"]) == (4, 5)


def test_there_are_few_cells():
    assert {name: [cell.id for cell in cells] for name, cells in CODE.items()} == {
        "fast-DreamBooth": ["set-up", "drive", "session", "images", "train", "samples", "export", "look", "finish"],
        "pictures": ["set-up", "list", "generate", "compare", "export"],
        "sessions": ["set-up", "list", "import", "share", "free", "rename", "delete"],
    }
    assert max(map(len, CODE.values())) <= 12


def test_the_notebooks_share_the_set_up_and_lead_to_each_other():
    assert len({cells[0].source for cells in CODE.values()}) == 1
    for path in NOTEBOOK.parent.glob("*.ipynb"):
        last = nbformat.read(path, as_version=4).cells[-1]
        others = {other.name for other in NOTEBOOK.parent.glob("*.ipynb")} - {path.name}
        assert set(re.findall(r"\]\((.+?)\)", last.source)) == others


@each_cell
def test_a_cell_is_short_and_stores_nothing(cell):
    assert len(cell.source.splitlines()) <= 19
    assert cell.source.startswith("# @title ")
    assert cell.metadata == {"cellView": "form"}
    assert cell.outputs == []
    assert cell.execution_count is None


@each_cell
def test_a_cell_defines_nothing_and_needs_nothing_but_the_session(cell):
    tree = ast.parse(cell.source)
    if cell.id == "set-up":  # The only code outside the package, see tests/wheels/test_set_up.py.
        return
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.Try)
    assert [node for node in ast.walk(tree) if isinstance(node, kinds)] == []
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    own |= {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    assert read - own - set(dir(builtins)) <= {"session", "fastdb"}
    assert ("session" in own) == (cell.id == "session")


@each_cell
def test_a_cell_is_one_call_into_the_package(cell):
    calls = [
        ast.unparse(node.func)
        for statement in ast.parse(cell.source).body
        for node in [getattr(statement, "value", None)]
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fastdb.")
    ]
    assert len(calls) == 1
    name = calls[0].removeprefix("fastdb.")
    inside = name.removeprefix("notebook.")
    assert hasattr(fastdb.notebook, inside) if name != inside else name in fastdb.__all__
    assert ast.unparse(ast.parse(cell.source).body[-1]).endswith(")"), "the call comes last, so that it shows"


@pytest.mark.parametrize("name", CODE)
def test_forms_are_what_colab_can_fill_in(name):
    for cell in CODE[name]:
        lines = [line for line in cell.source.splitlines() if "@param" in line]
        assert len(lines) == len(list(FIELD.finditer(cell.source))), "each on a line of its own"
        for line in lines:
            value, _, options = re.fullmatch(r"\w+ = (.+?)  # (@param) (.+)", line).groups()
            value = ast.literal_eval(value)
            if options.startswith("["):
                assert value in ast.literal_eval(options.removesuffix(" {allow-input: true}"))
            else:
                kind = re.match(r'\{type:"(\w+)"', options)[1]
                assert isinstance(value, {"string": str, "boolean": bool}.get(kind, int))


def test_the_form_of_a_session_asks_for_nothing_as_it_ships():
    (cell,) = (cell for cell in CODE["fast-DreamBooth"] if cell.id == "session")
    values = {found["name"]: ast.literal_eval(found["value"]) for found in FIELD.finditer(cell.source)}
    assert values.pop("base_model") == "sd15"
    assert not any(values.values())
    assert set(fastdb.notebook.FIELDS) <= set(values)


def test_every_choice_is_one_the_package_knows():
    source = {cell.id: cell.source for cells in (CODE["sessions"], CODE["fast-DreamBooth"]) for cell in cells}

    def choices(cell, field):
        return ast.literal_eval(re.search(rf"(?m)^{field} = .*@param (\[.*\])$", source[cell])[1])

    assert choices("finish", "act") == list(typing.get_args(fastdb.notebook.Ending))
    assert choices("free", "what") == list(REMOVABLE)
    precision = typing.get_type_hints(results.export)["precision"]
    assert choices("export", "precision") == list(typing.get_args(precision))
    default = [kind.value for kind in Format]
    assert [choice.split(" and ") for choice in choices("export", "formats")] == [
        default,
        *[[f] for f in default],
    ]
