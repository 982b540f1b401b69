"""`show` describes the trainer on this machine and summarises the settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdb.commands import sessions, training
from fastdb.console import ConsoleReport, show_overview
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import EventLog
from fastdb.sessions.session import Session
from fastdb.training.process import training_lock
from tests.commands.test_verification import put_checkpoint

PROMPTS = [f"a photo of a cup, number {number}" for number in range(64)]


@pytest.fixture
def session(mini: Path, photos: list[Path], sessions_folder: Path) -> Session:
    settings = {"prior.prompts": PROMPTS, "prior.class_images": 64, "unet.steps": 220, "text_encoder.steps": 0}
    return sessions.new("cup", mini, photos[:1], token="sks", class_word="cup", settings=settings)


def shown(session: Session, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show_overview(sessions.show(session))
    return capsys.readouterr().out


def test_the_trainer_is_shown_with_its_process_stage_and_rate(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "trained now" not in shown(session, capsys)
    log = EventLog(work_folder(session.path) / "run-1.jsonl")
    with training_lock(session.path, log.path):
        assert f"here, process {os.getpid()}\n" in shown(session, capsys)
        log.emit("progress", task="class images", done=3, total=64)
        assert f"here, process {os.getpid()}: class images 3/64\n" in shown(session, capsys)
        log.emit("stage", stage="unet", step=0, steps=220)
        for step in range(1, 41):
            seconds = 10.0 if step < 20 else 0.5
            log.emit("step", stage="unet", step=step, steps=220, loss=0.1, learning_rate=1e-6, seconds=seconds)
        assert f"here, process {os.getpid()}: UNet 40/220, 2 it/s\n" in shown(session, capsys)
    log.close()
    assert "trained now" not in shown(session, capsys)


def test_publishing_is_not_suggested_while_the_trainer_does_it(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = put_checkpoint(session, 3)
    session.local_checkpoints.mkdir(parents=True)
    checkpoint.path.rename(session.local_checkpoints / checkpoint.path.name)
    assert "unet-000003: on this machine only; run fastdb publish cup" in shown(session, capsys)
    log = EventLog(work_folder(session.path) / "run-1.jsonl")
    with training_lock(session.path, log.path):
        out = shown(session, capsys)
    log.close()
    assert "unet-000003: on this machine only; training publishes them" in out
    assert "fastdb publish" not in out


def test_long_settings_are_summarised_and_grouped(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(session, capsys)
    assert "prior.prompts 64 values" in out
    assert PROMPTS[1] not in out
    [unet] = [line for line in out.splitlines() if "unet.steps 220" in line]
    assert "prior." not in unet
    assert max(map(len, out.splitlines())) < 250


def test_extensions_are_shown_as_the_settings_have_them_now(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session = training.extend(session, 40)
    assert "after step 220 by 40 steps" in shown(session, capsys)
    [extended] = session.extensions
    assert extended.when
    session = session.with_config(session.config.changed({"unet.steps": 100}))
    out = shown(session, capsys)
    assert "after step 100 by 40 steps" in out
    assert "220" not in out
    session = session.with_config(session.config.changed({"unet.extensions": []}))
    assert "extended" not in shown(session, capsys)


def test_a_running_trainer_is_not_followed_if_that_was_not_wanted(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(work_folder(session.path) / "run-1.jsonl")
    with training_lock(session.path, log.path):
        assert training.train(session, follow=False, report=ConsoleReport()) == "started"
    log.close()
    out = capsys.readouterr().out
    assert "following it" not in out
    assert f"cup trains in process {os.getpid()}. Follow it with: fastdb train cup" in out
