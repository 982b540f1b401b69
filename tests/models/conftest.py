"""A stand-in model for this room, built once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from fastdb.models.standin import build_standin

    return build_standin(tmp_path_factory.mktemp("models") / "standin")


@pytest.fixture(scope="session")
def sources(standin: Path) -> dict[str, Path]:
    from fastdb.models.base_model import PARTS, weight_file

    return {part: weight_file(standin, part) for part in PARTS}
