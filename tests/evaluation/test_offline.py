"""Evaluations of real base models with and without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from fastdb import interactive
from fastdb.downloads import http_client
from fastdb.measures import encoders
from fastdb.sessions.session import Session
from tests.downloads.server import Hub, Server

FEW = {
    "measure": "clip",
    "checkpoints": [16],
    "seeds": 1,
    "steps": 1,
    "prompts": ["a photo of sks cup", "a photo of a cup", "a tree"],
}


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring model on this machine, and no waiting for one."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)


@pytest.fixture
def hub(nothing_here: None, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a tiny CLIP and a tiny DINOv2."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    small = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=small).save_pretrained(tmp_path / "dino")
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Server("localhost").running() as other:
        made = Hub(other)
        for name, folder in ((encoders.CLIP[0], clip), (encoders.DINO[0], tmp_path / "dino")):
            made.add(name, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        with made.running():
            yield made


def test_the_measuring_models_are_fetched_once(
    hub: Hub, kept: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    session.class_images.mkdir(exist_ok=True)
    for number, angle in enumerate((0, 90)):
        path = next(session.instance_images.glob("*.png"))
        Image.open(path).rotate(angle).save(session.class_images / f"own-{number}.png")
    evaluation = interactive.evaluate(session, **FEW)
    printed = capsys.readouterr().out
    assert printed.index(f"Downloading {encoders.CLIP[0]} to measure pictures, once: ") < printed.index("Evaluating")
    assert f"Downloading {encoders.DINO[0]} to measure pictures, once: " in printed
    now = evaluation.measured[-1].values
    assert {"dino", "clip_i", "gallery", "gallery_base", "drift"} <= set(now)
    saved = json.loads((session.path / "evaluation" / "evaluation.json").read_text())
    assert saved["checkpoints"][1]["figures"]["gallery"]["count"] == 1
    assert saved["checkpoints"][1]["figures"]["gallery"]["low"] is not None
    hub.log.clear()
    interactive.evaluate(session, **FEW)
    assert hub.log == []


def test_without_a_network_the_pictures_are_shown_side_by_side(
    nothing_here: None,
    kept: Path,
    sessions_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    evaluation = interactive.evaluate(session, **FEW)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Preparing the evaluation of cup"
    (reason,) = [line for line in printed if line.startswith("Nothing will be measured, because CLIP is not on this")]
    assert reason.endswith("To measure, run fastdb evaluate cup with a network, or pass --clip FOLDER")
    grid = session.path / "evaluation" / "grid.png"
    assert printed[-1] == str(grid) == str(evaluation.files[0])
    (losses,) = [line for line in printed if line.startswith("Last loss on fixed noise before each checkpoint")]
    assert re.search(r", step 16: instance 0\.\d{4}$", losses)
    with Image.open(grid) as sheet:
        assert sheet.height > 3 * 160
    assert not (session.path / "evaluation" / "evaluation.json").exists(), "nothing was chosen"
