"""A base model in single precision for this room, made once from mini, which ships in half."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.other_models import another


@pytest.fixture(scope="session")
def single(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return another(mini, tmp_path_factory.mktemp("models") / "single")


@pytest.fixture(scope="session")
def sources(single: Path) -> dict[str, Path]:
    from fastdb.models.diffusers_folder import PARTS, weight_file

    return {part: weight_file(single, part) for part in PARTS}
