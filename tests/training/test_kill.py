"""A killed and resumed run equals an uninterrupted run to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints.progress import standing
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import Event, read_events
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.training.acted_trainer import SHORT_AT
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
    killed_and_run_again(number, untrained, TOTAL)
    assert result(untrained) == expected
    assert not any(list(folder.glob(".unfinished-*")) for folder in untrained.checkpoint_folders)


SPARING: dict[str, dict[str, Any]] = {
    "average on the CPU": {"unet__ema_decay": 0.9, "unet__ema_on_cpu": True},
    "fused backward pass": {"optimizer__max_grad_norm": 0, "optimizer__fused_backward_pass": True},
}
"""Settings that save memory."""


@pytest.mark.parametrize("number", points({7}))
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if "CPU" in name else ()) for name in SPARING]
)
def test_killed_with_settings_that_save_memory(
    name: str, number: int, trained_once: Callable[..., Session], make_session: Callable[..., Session]
) -> None:
    """The average too is that of the run that was never interrupted."""
    settings = {"text_encoder__steps": 0, "prior__class_images": 0, "checkpoints__every_steps": 2, **SPARING[name]}
    whole = trained_once(name, lambda session: outcome(process.start(session)), **settings)
    session = make_session(**settings)
    killed_and_run_again(number, session, SETTINGS["unet.steps"])
    assert result(session) == result(whole)


def act(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Start trainers with a part acted, see `acted_trainer`."""
    honest = process.start_module

    def start(module: str, words: Sequence[str], folder: Path, output: Any, passed: Any, **options: Any) -> Any:
        assert module == "fastdb.training"
        return honest(
            "tests.training.acted_trainer", [name, *words], folder, output, {*passed, "PYTHONPATH"}, **options
        )

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setattr(process, "start_module", start)


UNET_ONLY: dict[str, Any] = {"text_encoder__steps": 0, "prior__class_images": 0}


@pytest.mark.parametrize("number", points(()))
def test_killed_with_the_gradient_scaler_of_fp16(
    number: int,
    trained_once: Callable[..., Session],
    make_session: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two steps are skipped, each of which halves the scale."""
    act(monkeypatch, "scaler")
    whole = trained_once("scaler", lambda session: outcome(process.start(session)), **UNET_ONLY)
    session = make_session(**UNET_ONLY)
    killed_and_run_again(number, session, SETTINGS["unet.steps"])
    assert result(session) == result(whole)
    mine, expected = (standing(one).checkpoints["unet"].state for one in (session, whole))
    assert expected["scaler"]["scale"] == 1024 / 4
    for name in ("scaler", "skipped", "losses", "optimizer"):
        assert mine[name] == expected[name], name


@pytest.mark.parametrize("number", points(()))
def test_killed_around_a_step_down_of_memory(
    number: int,
    trained_once: Callable[..., Session],
    make_session: Callable[..., Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory runs out until two settings have changed."""
    act(monkeypatch, "short_of_memory")
    settings = {**UNET_ONLY, "batch_size": 2}
    whole = trained_once("short of memory", lambda session: outcome(process.start(session)), **settings)
    session = make_session(**settings)
    killed_and_run_again(number, session, SETTINGS["unet.steps"])
    assert result(session) == result(whole)
    for one in (whole, session):
        assert {str(entry) for entry in Session.open(one.path).record.revised} == {
            f"after unet step {SHORT_AT - 1}: {change}=true (out of memory for activations)"
            for change in ("gradient_checkpointing", "split_batches")
        }


def killed_and_run_again(number: int, session: Session, steps: int) -> None:
    """Train a session of `steps` steps, kill it at a point, and train it to its end."""
    where = steps * (number + 0.5) / POINTS
    victim = process.start(session)
    if number % 2 == 0:
        moment = killed_while_saving(victim, session, after=where)
    else:
        moment = killed_at_step(victim, where, random.Random(number))
    assert moment, "the trainer ended before it could be killed"
    assert outcome(process.start(session)) == "finished"


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
