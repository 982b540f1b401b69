"""Following a training from a second terminal, which has no control over it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord

TRAINER = """
import sys, time
from pathlib import Path
from fastdb.sessions.events import EventLog
from fastdb.training.process import training_lock

events, seconds, end = Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
log = EventLog(events)
with training_lock(Path(sys.argv[1]), events):
    log.emit("sample", stage="unet", step=0, path="early.png")
    time.sleep(1)
    log.emit("stage", stage="unet", step=0, steps=1000)
    until = time.time() + seconds
    step = 0
    while time.time() < until:
        step += 1
        log.emit("step", stage="unet", step=step, steps=1000, loss=0.5, learning_rate=1e-6, seconds=0.1)
        time.sleep(0.1)
    if end:
        log.emit("end", outcome=end, message="the disk is full" if end == "failed" else "")
"""
"""What a trainer's process does for those who follow it, without a model: it holds the lock and writes events."""

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def session(sessions_folder: Path) -> Session:
    return Session.create("mug", base_model=BaseModelRecord(folder="/m", fingerprint="0"))


@pytest.fixture
def start(session: Session, tmp_path: Path) -> Iterator[Start]:
    """Start a trainer for so many seconds, with this end."""
    started = []

    def begin(seconds: float, end: str) -> subprocess.Popen:
        events = tmp_path / "run.jsonl"
        command = [sys.executable, "-c", TRAINER, str(session.path), str(events), str(seconds), end]
        process = subprocess.Popen(command)
        started.append(process)
        deadline = time.monotonic() + 60
        while not events.exists() or not events.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def follow() -> subprocess.Popen:
    command = [sys.executable, "-m", "fastdb", "show", "mug", "--follow"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A child of a background job ignores Ctrl-C otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_it_ends_with_the_training(start: Start) -> None:
    trainer = start(3, "finished")
    out, err = follow().communicate(timeout=120)
    assert f"Following mug (process {trainer.pid})" in out
    assert "Training finished" in out
    assert "early.png" not in out, "files of the time before are not news"
    assert "unet" in err


def test_ctrl_c_leaves_the_training_running(start: Start) -> None:
    trainer = start(120, "")
    view = follow()
    assert view.stdout is not None
    while (line := view.stdout.readline()) and "Following mug" not in line:
        pass
    time.sleep(0.5)
    os.kill(view.pid, signal.SIGINT)
    out, err = view.communicate(timeout=60)
    assert view.returncode == 0, err
    assert f"Training continues in process {trainer.pid}. To stop it: fastdb stop mug" in out
    assert trainer.poll() is None


@pytest.mark.parametrize(("end", "reason"), [("failed", "the disk is full"), ("", "crashed or was killed")])
def test_a_failure_names_the_command_that_resumes(start: Start, end: str, reason: str) -> None:
    start(2, end)
    view = follow()
    _, err = view.communicate(timeout=120)
    assert view.returncode == 2
    assert reason in err
    assert "fastdb train mug" in err


def test_without_a_training_it_says_so(session: Session) -> None:
    view = follow()
    out, _ = view.communicate(timeout=60)
    assert view.returncode == 0
    assert "mug is not being trained on this machine" in out
