"""Small sessions with several checkpoints, and tiny CLIP and DINO models of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.runtime.library_settings import prepare_libraries

prepare_libraries()

from filelock import FileLock
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from fastdb.commands import sessions, training
from fastdb.images.photos import save_png
from fastdb.models.registry import MINI
from fastdb.sessions.session import Session
from fastdb.world.subjects import SUBJECTS

SETTINGS: dict[str, Any] = {
    "text_encoder.steps": 4,
    "token.try": "off",
    "stop.check_loss": False,
    "unet.steps": 16,
    "prior.class_images": 0,
    "checkpoints.every_steps": 4,
    "checkpoints.keep_every": 4,
    "samples.steps": 4,
}


@pytest.fixture(scope="session")
def kept(photos: list[Path], common: Path) -> Path:
    """A session of real photos, trained by the real trainer, with checkpoints at 4, 8, 12, 16; tests only copy it."""
    return trained(common, "cup", photos, **{"stop.check_loss": True, "stop.check_every": 4})


@pytest.fixture(scope="session")
def drawn(common: Path) -> Path:
    """A session of a subject of the drawn world with checkpoints at 4 and 8; tests only copy it."""
    folder = common / "mug_photos"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(SUBJECTS["mug"].photos()):
        save_png(picture, folder / f"{number}.png")
    return trained(common, "mug", [folder], **{"unet.steps": 8})


def trained(common: Path, name: str, photos: list[Path], **settings: Any) -> Path:
    """Train a session on mini once for all workers; its class is its name."""
    root = common / "evaluated"
    with FileLock(common / f"evaluated_{name}.lock"):
        if not (root / name).exists():
            changed = {**SETTINGS, **settings}
            sessions.new(name, MINI, photos, token="sks", class_word=name, root=root, settings=changed)
            assert training.train(name, root=root) == "finished"
    return Session.open(name, root).path


@pytest.fixture
def session(kept: Path, sessions_folder: Path) -> Session:
    """A copy of that session for this test."""
    return Session.open(shutil.copytree(kept, sessions_folder / "cup"))


@pytest.fixture(scope="session")
def clip(mini: Path, common: Path) -> Path:
    """The folder of a tiny CLIP, saved as the real ones are."""
    return once(common / "clip", lambda folder: make_clip(folder, mini))


@pytest.fixture(scope="session")
def dino(common: Path) -> Path:
    """The folder of a tiny vision transformer, saved as DINO is."""
    return once(common / "dino", make_dino)


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder once for all workers."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


def make_clip(folder: Path, mini: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(mini / "tokenizer", local_files_only=True)
    torch.manual_seed(1)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    eyes = {**text, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**text, **words}, vision_config=eyes, projection_dim=16)
    model = CLIPModel(config)
    with torch.no_grad():
        for weight in model.parameters():  # or all pictures would look the same to it
            weight.mul_(4.0) if weight.ndim > 1 else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def make_dino(folder: Path) -> None:
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
