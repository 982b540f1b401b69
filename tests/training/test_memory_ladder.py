"""Memory that runs out: the run goes on from the same step with settings that keep the result, or says what fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load
from typer.testing import CliRunner

from fastdb.checkpoints.publisher_process import Publisher
from fastdb.cli import app
from fastdb.config import Config
from fastdb.console import sentence
from fastdb.errors import TrainingError
from fastdb.reporting import Note
from fastdb.sessions.events import read_events
from fastdb.sessions.session import Session
from fastdb.training import stage_run
from fastdb.training.memory_estimate import needed
from fastdb.training.memory_ladder import Shortage, next_step_down, step_down
from tests.training.acted_trainer import ASKED, short_of_memory
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
SHORT: dict[str, Any] = {
    "text_encoder__steps": 0,
    "unet__steps": 4,
    "prior__class_images": 2,
    "prior__weight": 0.5,
    "min_snr_gamma": 5.0,
    "checkpoints__every_steps": 50,
}


@pytest.fixture(autouse=True)
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer of this process starts no publisher, which would outlive its failure and hold the session's lock."""
    monkeypatch.setattr(Publisher, "wake", lambda self: None)


def notes(life: Life) -> list[str]:
    return [
        sentence(Note(event["kind"], event["subject"], event["reason"]))
        for event in life.said("note")
        if event["kind"] == "memory stepped down"
    ]


def close(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    mine, theirs = (load(files["unet-000004/unet.safetensors"]) for files in (one, other))
    return all(torch.allclose(mine[name], theirs[name], atol=1e-4) for name in mine)


@pytest.fixture(scope="module")
def plenty(make_session: Made) -> Session:
    """Trained with enough memory."""
    session = make_session("plenty", **SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Publisher, "wake", lambda self: None)
        assert Life(session).run() == "finished"
    return session


def test_it_steps_down_from_the_same_step_and_records_it(
    plenty: Session, make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = short_of_memory(monkeypatch, 2, lambda config: config.split_batches)
    session = make_session("short", **SHORT)
    life = Life(session)
    assert life.run() == "finished"
    assert len(failures) == 2
    assert [event["step"] for event in life.said("step")] == [1, 2, 3, 4], "no step is done again"
    assert [event["step"] for event in life.said("stage")] == [0, 1, 1]
    problem = "Out of memory after unet step 1: this machine has too little memory (4 MB more were needed). "
    assert [note.removeprefix(problem) for note in notes(life)] == [
        "Resuming from this step with gradient_checkpointing=true; results match only up to rounding",
        "Resuming from this step with split_batches=true; results match only up to rounding",
    ]
    session = Session.open(session.path)
    assert [str(entry) for entry in session.record.revised] == [
        "after unet step 1: gradient_checkpointing=true (out of memory for activations)",
        "after unet step 1: split_batches=true (out of memory for activations)",
    ]
    assert session.config.gradient_checkpointing
    assert session.config.split_batches
    assert close(result(session), result(plenty))

    # A session that is stopped there and changed by hand ends in the same bytes.
    monkeypatch.undo()
    monkeypatch.setattr(Publisher, "wake", lambda self: None)
    other = make_session("other", **SHORT)
    assert Life(other, until=at("unet", 1)).run() == "stopped"
    other = Session.open(other.path)
    frugal = {"gradient_checkpointing": True, "split_batches": True}
    assert Life(other.with_config(other.config.changed(frugal))).run() == "finished"
    assert result(other) == result(session)


@pytest.fixture(scope="module")
def shortage(make_session: Made) -> tuple[Session, Shortage]:
    """A session whose memory ran out with every setting that keeps the result, and the shortage; tests copy it."""
    session, reported = make_session("hopeless", **{**SHORT, "resolution": 128, "unet__ema_decay": 0.9}), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Publisher, "wake", lambda self: None)
        short_of_memory(patch, 2, lambda config: False)
        honest = stage_run.step_down

        def step_down(session: Session, shortage: Shortage, *arguments: Any) -> Session:
            reported.append(shortage)
            return honest(session, shortage, *arguments)

        patch.setattr(stage_run, "step_down", step_down)
        with pytest.raises(TrainingError):
            Life(session).run()
    return Session.open(session.path), reported[-1]


def past_the_last(session: Session, shortage: Shortage, available: int | None) -> tuple[str, list[str]]:
    """The error with `available` bytes, and the options of the commands that it offers."""
    with pytest.raises(TrainingError) as error:
        step_down(session, shortage, False, available, lambda *_, **__: None)
    return str(error.value), re.findall(r"fastdb train hopeless (.*?)(?:, or|$)", str(error.value))


def test_past_the_last_step_the_error_offers_the_settings_that_fit(shortage: tuple[Session, Shortage]) -> None:
    session, short = shortage
    moments, average = "--set optimizer.name=adamw8bit", "--from-step 0 --set unet.ema_decay=0"
    fused = "--restart --set optimizer.max_grad_norm=0 --set optimizer.fused_backward_pass=True"
    smaller = "--restart --set resolution=64"
    text, offered = past_the_last(session, short, None)
    assert offered == [moments, average, fused, smaller]
    start = "unet stage after step 1: this machine has too little memory (4 MB more were needed): it ran out for "
    assert text.startswith(start)
    assert re.search(r"for activations, which need about [\d.]+ [kM]B of [\d.]+ MB in all, and every setting", text)
    needs = {tuple(each.settings): need for each, need in short.alternatives}
    assert needs["optimizer.name",] < needs["unet.ema_decay",] < needed(short.shares)
    # 8-bit moments save most, so they alone fit at first.
    text, offered = past_the_last(session, short, int(needs["optimizer.name",] * 1.11))
    assert offered == [moments]
    assert re.search(r"\([\d.]+ MB are available\)", text)
    text, offered = past_the_last(session, short, int(min(needs.values()) * 1.11))
    assert offered == [
        f"--restart {moments} --set unet.ema_decay=0 {fused.removeprefix('--restart ')} --set resolution=64"
    ]
    text, offered = past_the_last(session, short, 1_000_000)
    assert not offered
    assert re.search(r"Use a machine with more memory; the settings that need least need about [\d.]+ MB\.$", text)


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.full) for number in (1, 2, 3, 4))])
def test_each_offered_command_works(
    number: int, shortage: tuple[Session, Shortage], copy_here: Callable[[Session], Session]
) -> None:
    session, short = copy_here(shortage[0]), shortage[1]
    least = min(need for _, need in short.alternatives)
    _, offered = past_the_last(session, short, None) if number < 4 else past_the_last(session, short, int(1.11 * least))
    options = offered[number % 4]
    done = CliRunner().invoke(app, ["train", "hopeless", *options.split(), "--root", str(session.path.parent)])
    assert done.exit_code == 0, done.output
    events = read_events(sorted(session.logs.glob("run-*.jsonl"))[-1])
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == ([2, 3, 4] if number == 0 else [1, 2, 3, 4])


def test_without_the_step_of_the_moments_the_last_checkpoint_counts(
    plenty: Session, make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while the weights change leaves them between two steps: these are done again."""
    session, honest, failed = make_session("between", **SHORT), stage_run.make_optimizer, []

    def make(*arguments: Any) -> Any:
        made = honest(*arguments)
        step = made.step

        def failing(*given: Any, **named: Any) -> Any:
            step(*given, **named)
            if not failed:
                failed.append(True)
                raise RuntimeError(ASKED)

        made.step = failing
        return made

    monkeypatch.setattr(stage_run, "make_optimizer", make)
    life = Life(session)
    assert life.run() == "finished"
    assert failed
    assert [event["step"] for event in life.said("stage")] == [0, 0]
    assert Session.open(session.path).record.revised[0].reason == "out of memory for moments"
    assert close(result(session), result(plenty))


def test_each_step_down_is_offered_only_where_it_helps() -> None:
    def steps(on_gpu: bool, stage: str, **settings: Any) -> list[str]:
        config, names = Config().changed({key.replace("__", "."): value for key, value in settings.items()}), []
        while step := next_step_down(config, stage, on_gpu):
            names += step
            config = config.changed(step)
        return names

    assert steps(True, "unet") == ["gradient_checkpointing"]
    assert steps(True, "unet", batch_size=2, unet__ema_decay=0.9) == [
        "gradient_checkpointing",
        "split_batches",
        "unet.ema_on_cpu",
    ]
    assert steps(True, "text_encoder", prior__class_images=5, unet__ema_decay=0.9) == [
        "gradient_checkpointing",
        "split_batches",
    ]
    assert steps(False, "unet", gradient_checkpointing=True, unet__ema_decay=0.9) == []
