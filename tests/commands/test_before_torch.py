"""What is wrong with the options is told before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.commands import sessions

CASES = {
    "generate mug x --steps 0": "steps 0 is not between 1 and 1000",
    "generate mug x --width 100": "width 100 is not a multiple of 8",
    "generate mug x --guidance 99": "guidance 99",
    "generate mug x --sampler nothing": "there is no such sampler",
    "generate cup x": "no session of this name",
    "evaluate mug": "there is no valid checkpoint of the UNet stage",
    "evaluate mug --steps 0": "steps 0 is not between 1 and 1000",
    "train mug --set unet.steps=-1": "unet.steps is -1",
    "train mug --set resolution=100": "must be a multiple of 64",
    "train mug": "instance images",
}

REPLACED = {
    "generate mug x": "this base model has other weights",
    "generate {file} x": "this base model has other weights",
    "evaluate mug": "this base model has other weights",
    "export mug": "this base model has other weights",
    "new cup --from mug": "this base model has other weights",
}


@pytest.mark.parametrize("words", CASES)
def test_a_mistake_is_told_without_torch(words: str, tmp_path: Path) -> None:
    sessions.new("mug", "mini", token="sks", class_word="mug")
    check(words, CASES[words], tmp_path)


@pytest.mark.parametrize("words", REPLACED)
def test_a_replaced_base_model_is_told_without_torch(words: str, mini: Path, tmp_path: Path) -> None:
    base = shutil.copytree(mini, tmp_path / "base")
    session = sessions.new("mug", base, token="sks", class_word="mug")
    (session.checkpoints / "unet-000001").mkdir()
    (session.path / "mug.safetensors").touch()
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    check(words.format(file=session.path / "mug.safetensors"), REPLACED[words], tmp_path)


def check(words: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from fastdb.cli import main; main()", *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        check=False,
    )
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
