"""Resume is equality: killed anywhere, the result is that of a run that never stopped, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fastdb.sessions.session import Session  # noqa: E402
from fastdb.training import process  # noqa: E402
from fastdb.training.events import read_events  # noqa: E402
from tests.training.conftest import SETTINGS, outcome, result  # noqa: E402

TOTAL = SETTINGS["text_encoder.steps"] + SETTINGS["unet.steps"]
POINTS = 20
BY_DEFAULT = {1, 7, 12, 18}


def points() -> list[object]:
    """20 kill points spread over both stages: even ones while a checkpoint is written, odd ones anywhere."""
    return [
        pytest.param(number, marks=() if number in BY_DEFAULT else pytest.mark.full, id=f"point{number:02d}")
        for number in range(POINTS)
    ]


@pytest.fixture
def untrained(straight: Session, copy: Callable[[Session], Session]) -> Session:
    """The session as it was before it trained."""
    session = copy(straight)
    for checkpoint in session.checkpoints.iterdir():
        if checkpoint.is_dir():
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    return session


@pytest.mark.parametrize("number", points())
def test_killed_anywhere_and_run_again_equals_never_stopped(number: int, straight: Session, untrained: Session) -> None:
    expected = result(straight)
    where = TOTAL * (number + 0.5) / POINTS
    victim = process.start(untrained)
    if number % 2 == 0:
        moment = killed_while_saving(victim, untrained.checkpoints, after=where)
    else:
        moment = killed_at_step(victim, where, random.Random(number))
    assert moment, "the trainer ended before it could be killed"

    assert outcome(process.start(untrained)) == "finished"
    assert result(untrained) == expected
    assert not list(untrained.checkpoints.glob(".unfinished-*"))


def killed_at_step(victim: process.Running, where: float, chance: random.Random) -> bool:
    """SIGKILL at a random moment within the two steps after `where` steps of both stages together."""
    deadline = time.monotonic() + 120
    while victim.alive() and time.monotonic() < deadline:
        if steps_done(victim) >= int(where):
            time.sleep(chance.uniform(0, 0.2))
            return kill(victim)
        time.sleep(0.005)
    return False


def killed_while_saving(victim: process.Running, checkpoints: Path, after: float) -> bool:
    """SIGKILL while the first checkpoint after `after` steps is half written: its hidden folder is there."""
    deadline = time.monotonic() + 120
    while victim.alive() and time.monotonic() < deadline:
        if steps_done(victim) >= int(after) - 2 and any(checkpoints.glob(".unfinished-*")):
            return kill(victim) and any(checkpoints.glob(".unfinished-*"))
        time.sleep(0.0005)
    return False


def kill(victim: process.Running) -> bool:
    """SIGKILL, and whether it was this that ended it."""
    os.kill(victim.pid, signal.SIGKILL)
    while victim.alive():
        time.sleep(0.005)
    return not any(event["event"] == "end" for event in read_events(victim.events))


def steps_done(victim: process.Running) -> int:
    return sum(event["event"] == "step" for event in read_events(victim.events))
