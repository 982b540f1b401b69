"""Paths of the picture cache."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.evaluation.candidates import Candidate, PictureCache
from fastdb.inference.request import Request
from fastdb.measures.shots import Shot


def test_a_file_name_contains_words_and_seed(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, Request("", width=64, height=64), "fp32")
    candidate = Candidate("step 10", 10, "a", lambda: None)  # type: ignore[arg-type, return-value]
    path = cache.path(candidate, Shot("context", "a photo of ../sks: dog?", 7))
    assert path.parent.parent == tmp_path
    assert path.parent.name.startswith("step_10-")
    assert path.name.startswith("a_photo_of_sks_dog-")
    assert path.name.endswith("-seed7.png")
    assert cache.path(candidate, Shot("x", "a photo of  sks dog", 7)) != cache.path(
        candidate, Shot("x", "a photo of sks dog", 7)
    )
    long = cache.path(candidate, Shot("context", "dog " * 500, 7)).name
    assert len(long) < 100
