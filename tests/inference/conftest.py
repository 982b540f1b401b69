"""A small session that has really learned, and the engine of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.runtime.library_settings import prepare_libraries

prepare_libraries()

from filelock import FileLock

from fastdb.commands import sessions, training
from fastdb.inference.engine import Engine
from fastdb.inference.open_model import open_source
from fastdb.sessions.session import Session

SETTINGS: dict[str, Any] = {
    "resolution": 64,
    "batch_size": 4,
    "text_encoder.steps": 8,
    "text_encoder.learning_rate": 3e-4,
    "unet.steps": 40,
    "unet.learning_rate": 1e-3,
    "samples.guidance": 1.5,
}
"""Enough for pictures that are far from those of the base model."""


@pytest.fixture(scope="session")
def learned(mini: Path, photos: list[Path], common: Path) -> Session:
    """A session trained to its end by the real trainer, once for all workers; tests do not change it."""
    root = common / "learned"
    with FileLock(common / "learned.lock"):
        if not (root / "cup").exists():
            sessions.new("cup", mini, photos, token="sks", class_word="cup", root=root, settings=SETTINGS)
            assert training.train("cup", root=root) == "finished"
    return Session.open("cup", root)


@pytest.fixture(scope="session")
def engine(learned: Session) -> Engine:
    """The engine of the learned session's weights."""
    return open_source(learned, None, None).load()
