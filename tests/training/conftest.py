"""A small session that trains for real within seconds, and one life of it that was never interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

torch = pytest.importorskip("torch")

from fastdb.checkpoints.checkpoint import (
    PACKED,
    RAW,
    Checkpoint,
    complete,
)
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.compressed_checkpoint import raw_file
from fastdb.checkpoints.publish import MADE_OF
from fastdb.commands import sessions
from fastdb.models.resolve import ensure_base
from fastdb.runtime.paths import work_folder
from fastdb.sessions.session import Session
from fastdb.storage.manifest import sha256
from fastdb.training import process
from tests.known_faces import faces_detected_once

SETTINGS: dict[str, Any] = {
    "resolution": 64,
    "seed": 11,
    "text_encoder.steps": 6,
    "text_encoder.learning_rate": 1e-4,
    "unet.steps": 10,
    "unet.learning_rate": 5e-4,
    "prior.class_images": 2,
    "prior.steps": 4,
    "checkpoints.every_steps": 3,
    "stop.check_loss": False,
}


@pytest.fixture(scope="session")
def small_photos(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The photos at 128 px, in which a subject is found in a fraction of the time."""
    folder = tmp_path_factory.mktemp("small")
    for path in photos:
        with Image.open(path) as photo:
            photo.resize((128, 128)).save(folder / path.name)
    return [folder / path.name for path in photos]


@pytest.fixture(scope="session")
def make_session(
    mini: Path, small_photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Session]:
    """Makes a small session, each in a root of its own."""

    def make(name: str = "cup", root: Path | None = None, **settings: Any) -> Session:
        root = root or tmp_path_factory.mktemp("root")
        chosen = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        with faces_detected_once():
            return sessions.new(name, mini, small_photos, token="sks", class_word="cup", root=root, settings=chosen)

    return make


@pytest.fixture(scope="session")
def trained_once(make_session: Callable[..., Session], common: Path) -> Callable[..., Session]:
    """Makes a session and trains it, once for all workers and tests with this `key`; they only copy it."""

    def trained(key: str, train: Callable[[Session], object], name: str = "cup", **settings: Any) -> Session:
        root = common / "trained" / key
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "lock"):
            if not (root / "done").exists():
                train(make_session(name, root, **settings))
                (root / "done").touch()
        return Session.open(root / name)

    return trained


@pytest.fixture(scope="session")
def straight(trained_once: Callable[..., Session]) -> Session:
    """A session trained to its end by the real trainer process, without an interruption; steps 9 and 10 of its UNet
    are published.
    """

    def train(session: Session) -> None:
        assert outcome(process.start(session)) == "finished"

    return trained_once("straight", train, checkpoints__keep_every=9)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Session], Session]:
    """Copies a session into a folder of its own."""

    def copied(session: Session) -> Session:
        return Session.open(shutil.copytree(session.path, tmp_path / "copies" / session.name))

    return copied


@pytest.fixture
def copy_here(copy: Callable[[Session], Session]) -> Callable[[Session], Session]:
    """Copies a session with the checkpoints that it has on this machine's own disk."""

    def copied(session: Session) -> Session:
        made = copy(session)
        shutil.copytree(work_folder(session.path), work_folder(made.path))
        return made

    return copied


def outcome(running: process.Running) -> str:
    """Follow a trainer to its end."""
    events = list(running.follow())
    assert events[-1]["event"] == "end", events[-1]
    assert events[-1]["outcome"] in {"finished", "stopped"}, events[-1]
    return str(events[-1]["outcome"])


def published(session: Session, step: int, name: str) -> bytes:
    """A file of a published checkpoint of the UNet's stage, byte for byte as it was saved."""
    return raw_file(
        session.checkpoints / f"unet-{step:06d}" / f"{name}.packed", ensure_base(session).folder
    ).read_bytes()


def result(session: Session) -> dict[str, bytes]:
    """Everything the last checkpoints in the session's folder hold in tensors, byte for byte as they were saved."""
    config = session.config
    unet, encoder = f"unet-{config.unet.all_steps:06d}", f"text_encoder-{config.text_encoder.all_steps:06d}"
    expected = {f"{unet}/unet", f"{unet}/optimizer"}
    if config.text_encoder.steps:
        if config.text_encoder.mode == "joint":
            expected |= {f"{unet}/text_encoder"}
        else:
            expected |= {f"{encoder}/text_encoder", f"{encoder}/optimizer"}
    if config.unet.ema_decay:
        expected |= {f"{unet}/unet_ema"}
    there = [path for name in (encoder, unet) for path in sorted((session.checkpoints / name).glob("*"))]
    files = [path for path in there if path.suffix in (PACKED, RAW)]
    assert {f"{path.parent.name}/{path.stem}" for path in files} == expected
    base = ensure_base(session).folder
    return {f"{path.parent.name}/{path.stem}.safetensors": raw_file(path, base).read_bytes() for path in files}


def as_saved(session: Session, folder: Path) -> Session:
    """A copy of a session in `folder`, its published checkpoints raw, as they were when they were saved."""
    made = Session.open(shutil.copytree(session.path, folder / session.name))
    shutil.rmtree(made.checkpoints)
    for one in complete(session.checkpoints):

        def write(hidden: Path, one: Checkpoint = one) -> dict[str, str]:
            files = {f"{path.stem}.safetensors": path for path in one.path.glob("*.packed")}
            for name, path in files.items():
                shutil.copy(raw_file(path, ensure_base(session).folder), hidden / name)
            return {name: sha256(hidden / name) for name in files}

        state = {name: value for name, value in one.state.items() if name != MADE_OF}
        save_checkpoint(made.checkpoints, one.stage, one.step, state, write)
    return made


def raw(session: Session, name: str) -> Path:
    """The raw file of a published checkpoint, such as `unet-000010/unet`."""
    return raw_file(session.checkpoints / f"{name}.packed", ensure_base(session).folder)
