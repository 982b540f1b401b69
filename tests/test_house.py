"""Structure of the package, its import order, costs, public names and contents."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdb
from benchmarks import house
from benchmarks.house import ORDER, room

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "fastdb"

HEAVY = ["torch", "numpy", "pydantic", "diffusers", "transformers", "PIL", "cv2", "skimage", "tqdm", "yaml", "typer"]


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return every module of the package by its dotted name, parsed once."""
    return house.parse_package(REPOSITORY)


def imported(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, inside functions too."""
    return house.imports(trees(), module)


def test_every_room_and_module_is_seen() -> None:
    modules = [name for name in trees() if "." in name]
    assert len(modules) >= 50
    assert {room(name) for name in modules} == set(ORDER), "a new room needs its place in ORDER"
    assert sum(1 for name in modules for _ in imported(name)) >= 150


def test_imports_point_down_only() -> None:
    assert house.upward_imports(trees()) == []


def test_no_module_comes_back_to_itself() -> None:
    assert house.cycle(trees()) == []


def test_the_walk_sees_an_arrow_that_points_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two tests above are worth something only if `imported` finds what hides in functions."""
    code = "def f():\n    if True:\n        from fastdb import commands, errors\n    import fastdb.cli as c, os\n"
    code += "if TYPE_CHECKING:\n    from fastdb.demo import run_demo\n"
    monkeypatch.setitem(trees(), "fastdb.errors", ast.parse(code))
    assert list(imported("fastdb.errors")) == ["fastdb.commands", "fastdb.errors", "fastdb.cli"]


def test_the_public_list_is_this() -> None:
    assert fastdb.__all__ == [
        "Config",
        "Engine",
        "FastDBError",
        "Request",
        "Session",
        "__version__",
        "add_images",
        "adopt",
        "check",
        "duplicate",
        "evaluate",
        "export",
        "extend",
        "generate",
        "list_sessions",
        "new",
        "open_or_new",
        "publish",
        "set_up",
        "share",
        "show",
        "stop",
        "train",
        "try_token",
    ]
    assert fastdb.__all__ == sorted(fastdb.__all__)
    assert len(fastdb.__all__) <= 30
    with pytest.raises(AttributeError, match="module 'fastdb' has no attribute 'load'"):
        _ = fastdb.load
    assert {name for name in dir(fastdb) if not name.startswith("__")} == set(fastdb.__all__) - {"__version__"}


def test_each_public_name_is_there() -> None:
    pytest.importorskip("torch")
    for name in fastdb.__all__:
        assert name == "__version__" or getattr(fastdb, name).__doc__, name


def test_a_verb_has_a_signature_that_names_its_arguments() -> None:
    pytest.importorskip("torch")
    for name in fastdb.__all__:
        verb = getattr(fastdb, name)
        if inspect.isfunction(verb):
            kinds = [parameter.kind for parameter in inspect.signature(verb).parameters.values()]
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'bogus'"):
        fastdb.evaluate("cup", bogus=1)


def python(code: str, **environment: str) -> dict[str, list[str]]:
    """Run code in a new interpreter; what it prints last is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return loaded


LOADED = f"print(json.dumps({{what: [m for m in {HEAVY} if m in sys.modules]}}))"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, json; what = 'import'; import fastdb; dir(fastdb); {LOADED}"
    assert python(code) == {"import": []}


def test_the_quick_commands_need_no_torch(sessions_folder: Path) -> None:
    from fastdb.sessions.session import Session
    from fastdb.sessions.session_yaml import BaseModelRecord

    Session.create("dog", base_model=BaseModelRecord(folder="/m", fingerprint="0"))
    assert sessions_folder.is_dir()
    code = f"""
import json, sys
from fastdb.cli import app
loaded = {{}}
helps = [["--help"], ["--version"], ["train", "--help"], ["evaluate", "--help"]]
for command in (*helps, ["sessions"], ["show", "dog"], ["stop", "dog"]):
    try:
        app(command)
    except SystemExit as ended:
        assert not ended.code, command
    loaded[" ".join(command)] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(loaded))
"""
    loaded = python(code)
    assert loaded["--help"] == loaded["--version"] == ["typer"]
    assert len(loaded) == 7
    for command, modules in loaded.items():
        assert not {"torch", "numpy", "diffusers", "transformers", "cv2", "skimage"} & set(modules), command


def test_only_the_console_prints() -> None:
    found = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            prints = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
            )
            writes = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            if prints or writes:
                found.append(name)
    assert set(found) == {"fastdb.console.terminal", "fastdb.console.streams"}


def test_no_fault_is_swallowed() -> None:
    handlers = [
        (name, node) for name, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)
    ]
    assert len(handlers) >= 30
    for name, node in handlers:
        assert node.type is not None, f"{name}:{node.lineno} catches everything"
        silent = all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in node.body)
        assert not silent, f"{name}:{node.lineno} swallows a fault"


def test_nobody_asserts_at_a_person() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The public classes and functions of a module, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def test_everything_public_says_what_it_is() -> None:
    seen, silent = 0, []
    for name, tree in trees().items():
        if not ast.get_docstring(tree):
            silent.append(name)
        for what, node in public(tree):
            seen += 1
            if not ast.get_docstring(node):  # type: ignore[arg-type]
                silent.append(f"{name}.{what}")
    assert seen >= 150
    assert silent == []


def test_every_function_has_its_types() -> None:
    seen, untyped = 0, []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            seen += 1
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given += [one for one in (node.args.vararg, node.args.kwarg) if one is not None]
            bare = [one.arg for one in given if one.annotation is None and one.arg not in ("self", "cls")]
            if bare or node.returns is None:
                untyped.append(f"{name}:{node.lineno} {node.name} {bare}")
    assert seen >= 300
    assert untyped == []


def test_files_and_functions_stay_small() -> None:
    lengths = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.__getitem__)
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_the_readme_draws_every_room() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    tree = next(fence for fence in fences if "errors.py" in fence).split("\nfastdb/\n")[1]
    drawn = re.findall(r"^  ([a-z_]+)(?:/|\.py) ", tree, re.MULTILINE)
    assert sorted(drawn) == sorted(set(ORDER) - {"__main__"})


def test_the_architecture_page_lists_every_module() -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "modules.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and path.parent != PACKAGE]
    assert len(modules) >= 45
    missing = [path.relative_to(PACKAGE).as_posix() for path in modules if f"- `{path.name}`: " not in text]
    assert missing == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it will be installed, built from a copy, so that nothing is left in the repository."""
    pytest.importorskip("setuptools", minversion="70.1")  # which can make wheels by itself
    source = tmp_path_factory.mktemp("source") / "fastdb"
    aside = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "__pycache__", "tests", "docs", "notebooks", "benchmarks"
    )
    shutil.copytree(REPOSITORY, source, ignore=aside)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-w", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


def test_the_wheel_holds_the_package_the_template_and_the_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        model = {name: archive.read(name) for name in names if "/mini/" in name or name.endswith(".safetensors")}
    template = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "sessions_template").rglob("*.txt")}
    assert len(template) == 7
    assert {name for name in names if "sessions_template" in name} == {f"fastdb/{name}" for name in template}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    files = [*(PACKAGE / "models" / "mini").rglob("*.*"), PACKAGE / "world" / "judge.safetensors"]
    assert {path.suffix for path in files} >= {".json", ".txt", ".safetensors"}
    assert len(files) >= 13
    assert model == {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in files}
    assert {name.split("/")[0] for name in names} == {"fastdb", f"fast_dreambooth-{fastdb.__version__}.dist-info"}
    locks = {path.name for path in (REPOSITORY / "wheels" / "locks").iterdir()}
    assert len(locks) == 9
    assert {name for name in names if name.startswith("fastdb/wheels/")} == {
        "fastdb/wheels/models.lock",
        *(f"fastdb/wheels/locks/{name}" for name in locks),
    }


def test_a_checkout_holds_what_the_package_reads() -> None:
    """No rule keeps a file of the package out of the repository, as rules for data and models do in many."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout, or there is no git here")
    files = [path for path in PACKAGE.rglob("*.*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.suffix == ".safetensors" for path in files) == 4
    command = ["git", "check-ignore", "--no-index", *map(str, files)]
    ignored = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored


def test_a_session_of_the_installed_package_equals_the_template(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = f"""
import json, sys
sys.path.insert(0, {str(installed)!r})
from fastdb.sessions import session
from fastdb.sessions.session_yaml import BaseModelRecord
made = session.Session.create("dog", base_model=BaseModelRecord(folder="/m", fingerprint="0"), root={str(tmp_path)!r})
print(json.dumps({{"home": [session.__file__, str(session.TEMPLATE)]}}))
"""
    home = python(code)["home"]
    assert all(path.startswith(str(installed)) for path in home)
    expected = {
        path.relative_to(REPOSITORY / "sessions_template"): path.read_bytes()
        for path in (REPOSITORY / "sessions_template").rglob("*.txt")
    }
    made = {path.relative_to(tmp_path / "dog"): path.read_bytes() for path in (tmp_path / "dog").rglob("*.txt")}
    assert made == expected


def test_the_settings_page_is_that_of_the_settings() -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "settings.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
