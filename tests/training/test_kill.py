"""A killed and resumed run equals an uninterrupted run to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import Event, read_events
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.training.conftest import SETTINGS, outcome, result

TOTAL = SETTINGS["text_encoder.steps"] + SETTINGS["unet.steps"]
POINTS = 20
BY_DEFAULT = {7, 12}


def points(by_default: Collection[int] = BY_DEFAULT) -> list[object]:
    """20 kill points spread over both stages: even ones while a checkpoint is written, odd ones anywhere."""
    return [
        pytest.param(number, marks=() if number in by_default else pytest.mark.full, id=f"point{number:02d}")
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
        moment = killed_while_saving(victim, untrained, after=where)
    else:
        moment = killed_at_step(victim, where, random.Random(number))
    assert moment, "the trainer ended before it could be killed"

    assert outcome(process.start(untrained)) == "finished"
    assert result(untrained) == expected
    assert not any(list(folder.glob(".unfinished-*")) for folder in untrained.checkpoint_folders)


SPARING: dict[str, dict[str, Any]] = {
    "average on the CPU": {"unet__ema_decay": 0.9, "unet__ema_on_cpu": True},
    "fused backward pass": {"optimizer__max_grad_norm": 0, "optimizer__fused_backward_pass": True},
}
"""Settings that save memory."""


@pytest.mark.parametrize("number", points({7}))
@pytest.mark.parametrize("name", SPARING)
def test_killed_with_settings_that_save_memory(
    name: str, number: int, trained_once: Callable[..., Session], make_session: Callable[..., Session]
) -> None:
    """The average too is that of the run that was never interrupted."""
    settings = {"text_encoder__steps": 0, "prior__class_images": 0, "checkpoints__every_steps": 2, **SPARING[name]}
    whole = trained_once(name, lambda session: outcome(process.start(session)), **settings)
    session = make_session(**settings)
    where = SETTINGS["unet.steps"] * (number + 0.5) / POINTS
    victim = process.start(session)
    if number % 2 == 0:
        moment = killed_while_saving(victim, session, after=where)
    else:
        moment = killed_at_step(victim, where, random.Random(number))
    assert moment, "the trainer ended before it could be killed"
    assert outcome(process.start(session)) == "finished"
    assert result(session) == result(whole)


RUNS, KILLS = 21, 10


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=() if run == 0 else pytest.mark.full, id=f"run{run:02d}") for run in range(RUNS)]
)
def test_killed_again_and_again_while_it_trains_and_publishes(
    run: int, straight: Session, untrained: Session, record_property: Callable[[str, object], None]
) -> None:
    """Kills at random moments, ten in each of the 20 runs that are counted, by turns of the trainer alone and of its
    publisher too: all that was seen on the way and the end are those of the run that was never interrupted, and no
    more than two intervals are done again.
    """
    chance, kills, killed = random.Random(run), KILLS if run else 2, 0
    while killed < kills:
        victim = process.start(untrained)
        deadline = time.monotonic() + 120
        while victim.alive() and not steps_done(victim) and time.monotonic() < deadline:
            time.sleep(0.005)
        # A step takes about 0.15 s, saving about as long, and publishing seconds in which training goes on or ends.
        time.sleep(chance.uniform(0, 1.5))
        if not victim.alive():
            break  # It was quicker than its killer: what it made is compared below.
        if chance.random() < 0.5:
            os.killpg(victim.pid, signal.SIGKILL)
        assert kill(victim) or not victim.alive()
        killed += 1
    record_property("kills", killed)
    assert outcome(process.start(untrained)) == "finished"
    assert killed
    assert result(untrained) == result(straight)

    told = [read_events(path) for path in sorted(work_folder(untrained.path).glob("run-*.jsonl"))]
    lives = [seen(life) for life in told]
    whole = seen(logged(straight))
    done: list[tuple[str, int, str]] = []
    again = 0
    for life in lives:
        # Where a life begins there is one place in the sequence, and from there on it is the same.
        if life:
            begins = whole.index(life[0])
            assert life == whole[begins : begins + len(life)]
            again = max(again, len(done) - begins)
            done = done[:begins] + life
    assert done == whole
    record_property("steps done again at most", again)
    assert again <= 2 * SETTINGS["checkpoints.every_steps"]


def seen(events: list[Event]) -> list[tuple[str, int, str]]:
    """The steps of a life in their order, each with a hash of its latents, noise, timesteps and prompts."""
    return [(event["stage"], event["step"], event["batch"]) for event in events if event["event"] == "step"]


def logged(session: Session) -> list[Event]:
    """What the one run of a session that was never interrupted said, as its log has it."""
    (log,) = session.logs.glob("run-*.jsonl")
    return read_events(log)


def killed_at_step(victim: process.Running, where: float, chance: random.Random) -> bool:
    """SIGKILL at a random moment within the two steps after `where` steps of both stages together."""
    deadline = time.monotonic() + 120
    while victim.alive() and time.monotonic() < deadline:
        if steps_done(victim) >= int(where):
            time.sleep(chance.uniform(0, 0.2))
            return kill(victim)
        time.sleep(0.005)
    return False


def killed_while_saving(victim: process.Running, session: Session, after: float) -> bool:
    """SIGKILL while the first checkpoint after `after` steps is half written, or half published.

    If it was whole before the signal came, the session is resumed and killed at its next checkpoint too.
    """

    def half_written() -> bool:
        return any(any(folder.glob(".unfinished-*")) for folder in session.checkpoint_folders)

    deadline, killed, enough = time.monotonic() + 120, False, int(after) - 2
    while victim.alive() and time.monotonic() < deadline:
        if steps_done(victim) >= enough and half_written():
            killed = kill(victim) or killed
            if half_written():
                return killed
            victim, enough = process.start(session), 0
        time.sleep(0.0005)
    return killed


def kill(victim: process.Running) -> bool:
    """SIGKILL, and whether it was this that ended it."""
    os.kill(victim.pid, signal.SIGKILL)
    while victim.alive():
        time.sleep(0.005)
    return not any(event["event"] == "end" for event in read_events(victim.events))


def steps_done(victim: process.Running) -> int:
    return sum(event["event"] == "step" for event in read_events(victim.events))
