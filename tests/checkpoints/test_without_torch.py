"""The publisher's process imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("zstandard")

from fastdb.checkpoints.checkpoint import complete, save
from fastdb.checkpoints.compressed_index import read_index
from fastdb.formats.reader import open_tensors
from fastdb.models.diffusers_folder import weight_file
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.manifest import faults, sha256
from tests.checkpoints.test_compressed_checkpoint import STATE, write

PROCESS = """
import json, sys
from pathlib import Path
from fastdb.checkpoints.__main__ import main
code = main(*map(Path, sys.argv[1:]), trainer=0, lease=[])
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
"""Its trainer is gone: it ends when all is published."""


def test_a_checkpoint_is_published_without_torch(tmp_path: Path, mini: Path) -> None:
    session = Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))
    base = open_tensors(weight_file(mini, "unet")).tensors
    weights = {name: ("float32", base[name].shape) for name in list(base)[:4]}

    def raw(hidden: Path) -> dict[str, str]:
        files = {"unet": weights, "unet_ema": weights, "optimizer": STATE}
        for name, tensors in files.items():
            write(hidden / f"{name}.safetensors", tensors, name)
        return {path.name: sha256(path) for path in hidden.iterdir()}

    state = {"format": 2, "lineage": session.record.lineage, "stage": "unet", "step": 5, "steps": 10}
    session.local_checkpoints.parent.mkdir(parents=True, exist_ok=True)
    save(session.local_checkpoints, "unet", 5, state, raw)
    command = [sys.executable, "-c", PROCESS, str(session.path), str(mini), str(tmp_path / "events.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    (published,) = complete(session.checkpoints)
    assert (code, faults(published.path)) == (0, [])
    for name, coding in {"unet": "difference", "unet_ema": "difference", "optimizer": "planes"}.items():
        path = published.path / f"{name}.packed"
        with path.open("rb") as file:
            index = read_index(file, path.stat().st_size)
        assert coding in {one.coding for one in index.tensors.values()}
    assert "numpy" in loaded
    assert not {"torch", "safetensors", "diffusers", "transformers", "bitsandbytes"} & set(loaded)
