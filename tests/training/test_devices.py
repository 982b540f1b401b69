"""A training runs in one process, on a GPU that no other trainer uses."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fastdb.commands import training
from fastdb.errors import TrainingError
from fastdb.runtime.device_lock import device_lock
from fastdb.sessions.session import Session

TWO_STEPS = {"text_encoder__steps": 0, "unet__steps": 2, "prior__class_images": 0}


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that reports two GPUs; torch here uses none of them."""
    if torch.cuda.is_available():
        pytest.skip("acts the GPUs, and this machine has one")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 0\necho 1\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.mark.usefixtures("two_gpus")
def test_a_trainer_without_a_free_gpu_is_refused_and_trains_on_the_cpu(make_session: Callable[..., Session]) -> None:
    session = make_session("third", **TWO_STEPS)
    with device_lock("", "cup"):
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
        with device_lock("cuda:1", "dog"):
            os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
            with pytest.raises(TrainingError, match=r"^all 2 GPUs are in use by other trainers \(cup, dog\)\. "):
                training.train(session)
            assert training.train(session, device="cpu") == "finished"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_torch_cannot_use_is_an_error_if_it_was_asked_for(make_session: Callable[..., Session]) -> None:
    session = make_session("asked", **TWO_STEPS)
    with pytest.raises(TrainingError) as caught:
        training.train(session, device="cuda:1")
    assert str(caught.value) == (
        f"device cuda:1: torch {torch.__version__} cannot use it. "
        "Install a torch that fits the driver, or leave out --device to train without a GPU."
    )
    assert training.train(session) == "finished"


@pytest.mark.parametrize("entry", ["fastdb", "fastdb.training"])
def test_a_second_process_of_a_launcher_is_refused_in_a_sentence(
    entry: str, make_session: Callable[..., Session], tmp_path: Path
) -> None:
    session, events = make_session("twice", **TWO_STEPS), tmp_path / "events.jsonl"
    words = ["train", str(session.path)] if entry == "fastdb" else [str(session.path), str(events)]
    done = subprocess.run(
        [sys.executable, "-m", entry, *words],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr if entry == "fastdb" else events.read_text(encoding="utf-8")
    assert (done.returncode, said.count("a session trains in one process on one GPU")) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(session.checkpoints.glob("unet-*"))
