"""Training while the drive fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints.progress import standing
from fastdb.commands import training
from fastdb.sessions.events import read_events
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.faultfs.mount import Mount
from tests.faultfs.upload import Late, Slow, Uploads
from tests.requires import requires_fuse
from tests.training.conftest import outcome, result

pytestmark = requires_fuse


def lay(session: Session, folder: Path) -> Session:
    """The session as it was before it trained, on a drive."""
    path = folder / session.name
    shutil.copytree(session.path, path, ignore=shutil.ignore_patterns("checkpoints", "logs", "work"))
    (path / "checkpoints").mkdir()
    return Session.open(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Each call is a machine of its own: what it keeps on its disk no other has."""
    numbers = iter(range(100))

    def fresh() -> None:
        monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / f"machine{next(numbers)}"))

    fresh()
    return fresh


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Mount]:
    with Mount(tmp_path) as mounted:
        yield mounted


def until(running: process.Running, enough: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for an event of a trainer."""
    deadline = time.monotonic() + 120
    while not any(enough(event) for event in read_events(running.events)):
        assert running.alive(), read_events(running.events)[-1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step(stage: str, number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "step" and (event["stage"], event["step"]) >= (stage, number)


def test_a_drive_that_goes_away_and_comes_back_costs_a_line(
    straight: Session, drive: Mount, machine: Callable[[], None]
) -> None:
    session = lay(straight, drive.path)
    running = process.start(session)
    until(running, step("text_encoder", 2))
    drive.disconnect()
    # Training goes on meanwhile, over saves and the end of a stage.
    until(running, step("unet", 8))
    until(running, lambda event: event["event"] == "note")
    drive.heal()
    assert outcome(running) == "finished"
    said = read_events(running.events)
    [note] = [event for event in said if event["event"] == "note"]
    assert note["kind"] == "publishing delayed"
    assert "does not answer" in note["reason"]
    assert result(session) == result(straight)
    published = [event["step"] for event in said if event["event"] == "published"]
    assert published[-2:] in ([9, 10], [10, 9]), "at the end the last comes first"


def test_a_full_drive_ends_with_a_line_and_nothing_is_lost(
    straight: Session, drive: Mount, machine: Callable[[], None]
) -> None:
    session = lay(straight, drive.path)
    session = session.with_config(session.config.changed({"checkpoints.patience_minutes": 0.02}))
    drive.room(100_000)
    running = process.start(session)
    end = list(running.follow())[-1]
    assert end["outcome"] == "failed"
    assert "text_encoder-000006, unet-000009, unet-000010 could not be published" in end["message"]
    assert "the disk is full" in end["message"]
    assert standing(session).done("unet") == 10

    drive.heal()
    drive.room(1 << 30)
    assert training.publish(session).path == session.path
    assert result(session) == result(straight)


@pytest.mark.parametrize(
    "uploads",
    [
        pytest.param(Late(seed=3, delay=400), marks=pytest.mark.full, id="late"),
        pytest.param(Slow(seed=3, rate=200_000), id="slow"),
    ],
)
def test_a_machine_lost_in_the_middle_costs_no_more_than_what_was_not_uploaded(
    uploads: Uploads, straight: Session, tmp_path: Path, machine: Callable[[], None]
) -> None:
    with Mount(tmp_path, uploads) as drive:
        session = lay(straight, drive.path)
        drive.settle()
        running = process.start(session)
        until(running, step("unet", 6))
        os.killpg(running.pid, signal.SIGKILL)
        while running.alive():
            time.sleep(0.01)
        heir = drive.lose()
        machine()
        session = Session.open(heir.path / straight.name)
        done = {stage: standing(session).done(stage) for stage in ("text_encoder", "unet")}
        assert done["unet"] <= 6
        assert outcome(process.start(session, take_over=True)) == "finished"
        assert result(session) == result(straight)
