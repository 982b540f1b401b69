"""The modules of the recipe, and its results after a few steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from fastdb.runtime.library_settings import prepare_libraries

prepare_libraries()

from tests.mini.small import MODULES, REPOSITORY, load, shrink


@pytest.fixture(scope="package")
def recipe() -> Iterator[SimpleNamespace]:
    """The modules of `mini/`, on the path for these tests only because of their short names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "mini"))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # set by an import otherwise, and left behind
        assert not set(MODULES) & set(sys.modules)
        yield load()
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="package")
def small(recipe: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The same modules with few steps."""
    kept = {name: dict(vars(getattr(recipe, name))) for name in MODULES}
    shrink(recipe)
    yield recipe
    for name, values in kept.items():
        vars(getattr(recipe, name)).update(values)


@pytest.fixture(scope="package")
def made(small: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All parts made by a single command, with intermediate files in `work` and the package in `house`."""
    work, house = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("house")
    for room in ("models", "world"):
        (house / room).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small.make, "PACKAGE", house)
        patch.setattr(sys, "argv", ["make.py", "--work", str(work)])
        small.make.main()
    return SimpleNamespace(work=work, house=house)


@pytest.fixture
def again(made: SimpleNamespace, tmp_path: Path) -> Path:
    """A work folder with the pictures of `made` but no training state."""
    for file in made.work.glob("*.npy"):
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path
