"""The modules of the recipe, and all that it makes in a handful of steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from fastdb.runtime.library_logging import hush_libraries

hush_libraries()

from tests.mini.small import MODULES, REPOSITORY, load, shrink


@pytest.fixture(scope="package")
def recipe() -> Iterator[SimpleNamespace]:
    """The modules of `mini/` as they are, on the path for these tests alone: their names are short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "mini"))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # set by an import otherwise, and left behind
        assert not set(MODULES) & set(sys.modules)
        yield load()
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="package")
def small(recipe: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The same with a handful of steps."""
    kept = {name: dict(vars(getattr(recipe, name))) for name in MODULES}
    shrink(recipe)
    yield recipe
    for name, values in kept.items():
        vars(getattr(recipe, name)).update(values)


@pytest.fixture(scope="package")
def made(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All parts made by one command: `work` holds what it keeps, `house` what would ship."""
    work, house = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("house")
    for room in ("models", "world"):
        (house / room).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small.make, "HOUSE", house)
        patch.setattr(sys, "argv", ["make.py", "--work", str(work)])
        small.make.main()
    return SimpleNamespace(work=work, house=house)


@pytest.fixture
def again(made: SimpleNamespace, tmp_path: Path) -> Path:
    """A work folder with the pictures that `made` drew, and nothing learned yet."""
    for file in made.work.glob("*.npy"):
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path
