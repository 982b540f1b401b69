"""Memory that runs out: the run goes on from the same step with settings that keep the result, or says what fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load

from fastdb.checkpoints.publisher_process import Publisher
from fastdb.config import Config
from fastdb.console import sentence
from fastdb.errors import TrainingError
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.training import stage_run
from fastdb.training.memory_ladder import next_step_down
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


def test_past_the_last_step_the_error_names_the_share_and_settings(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 2, lambda config: False)
    session = make_session("hopeless", **{**SHORT, "resolution": 128})
    with pytest.raises(TrainingError) as error:
        Life(session).run()
    text = str(error.value)
    assert text.startswith(
        "unet stage after step 1: this machine has too little memory (4 MB more were needed): it ran"
    )
    assert re.search(r"it ran out for activations, which need about [\d.]+ [kM]B of [\d.]+ MB in all, and every", text)
    assert re.search(r"8-bit moments \(about [\d.]+ MB less\): .*smaller pictures \(about [\d.]+ [kM]B less\): ", text)
    commands = re.findall(r"fastdb train hopeless (.*?)(?:, or|$)", text)
    assert commands == [
        "--set optimizer.name=adamw8bit",
        "--restart --set resolution=64",
    ]


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
