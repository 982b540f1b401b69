"""Models that measure pictures are downloaded once, and a network is tried for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdb.downloads.encoders import cached_encoder, fetch_encoder
from fastdb.errors import ModelError
from tests.downloads.server import COMMIT, Hub

NAME, OTHER = "owner/eyes", "other/eyes"
FILES = {
    "config.json": b'{"model_type": "dinov2"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "pytorch_model.bin": b"b" * 6000,
    "README.md": b"read me",
}


@pytest.fixture(autouse=True)
def no_cache_of_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_model_is_fetched_once_and_its_size_told_first(hub: Hub, tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    told: list[object] = []
    folder = fetch_encoder([NAME], lambda *size: told.append(size), lambda *done: told.append(done))
    assert folder.is_relative_to(tmp_path / "cache" / "models")
    total = sum(len(FILES[name]) for name in ("config.json", "preprocessor_config.json", "model.safetensors"))
    assert told[0] == (NAME, total)
    assert told[-1] == (total, total)
    assert {path.name for path in folder.glob("[!.]*")} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert json.loads((folder / ".fetched.json").read_text())["source"] == f"{NAME}@{COMMIT}"
    hub.log.clear()
    assert cached_encoder([OTHER, NAME]) == folder == fetch_encoder([NAME], lambda *_: None)
    assert hub.log == []


def test_a_repository_of_pickles_is_skipped(hub: Hub) -> None:
    hub.add(NAME, {name: data for name, data in FILES.items() if name != "model.safetensors"})
    with pytest.raises(ModelError, match=r"owner/eyes: the repository has no model\.safetensors"):
        fetch_encoder([NAME], lambda *_: None)
    hub.add(OTHER, FILES)
    assert (fetch_encoder([NAME, OTHER], lambda *_: None) / "model.safetensors").read_bytes() == b"w" * 5000


def test_a_hub_that_refuses_or_is_away_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="owner/eyes: there is no such local folder"):
        fetch_encoder([NAME], lambda *_: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="2 times in a row"):
        fetch_encoder([NAME], lambda *_: None)


def test_a_model_in_the_cache_of_huggingface_hub_is_used(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--eyes" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, data in FILES.items():
        (snapshot / name).write_bytes(data)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    assert cached_encoder([NAME]) == snapshot
    (snapshot / "config.json").unlink()
    assert cached_encoder([NAME]) is None
