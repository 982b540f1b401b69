"""Defects that were found once, each with its test."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator
from PIL import Image

from fastdb.checkpoints.progress import standing
from fastdb.commands import training
from fastdb.errors import SessionBusy, StorageError, TrainingError
from fastdb.sessions.events import EventLog, follow_events, read_events
from fastdb.sessions.session import Session
from fastdb.training import stage_run
from fastdb.training.observers import Sampler
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
SHORT: dict[str, Any] = {"text_encoder__steps": 3, "unet__steps": 5, "prior__class_images": 0}


@pytest.mark.full
def test_a_gradient_scaler_is_not_carried_into_the_next_stage(make_session: Made, monkeypatch: Any) -> None:
    """On a T4 every run has one. Here a real one is put into a run on the CPU, with a scale that grows every step."""
    honest = stage_run._new_accelerator

    def scaled(prepared: Any) -> Accelerator:
        accelerator = honest(prepared)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        return accelerator

    monkeypatch.setattr(stage_run, "_new_accelerator", scaled)
    one, other = make_session("scaled", **SHORT), make_session("scaled2", **SHORT)
    assert Life(one).run() == "finished"
    assert Life(other, until=at("text_encoder", 3)).run() == "stopped"
    assert Life(other, until=at("unet", 2)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert standing(one).checkpoints["unet"].state["scaler"]["scale"] == 1024.0 * 2**5
    assert standing(other).checkpoints["unet"].state["scaler"] == standing(one).checkpoints["unet"].state["scaler"]
    assert result(one) == result(other)


def test_a_stop_at_the_end_of_a_stage_does_not_begin_the_next(make_session: Made) -> None:
    session = make_session("between", **SHORT)
    life = Life(session, until=at("text_encoder", 3))
    assert life.run() == "stopped"
    assert set(standing(session).checkpoints) == {"text_encoder"}
    assert {event["stage"] for event in life.said("step")} == {"text_encoder"}


def test_a_session_that_is_moved_away_gets_no_ghost(make_session: Made) -> None:
    session = make_session("moved", **SHORT, checkpoints__patience_minutes=0)
    elsewhere = session.path.with_name("elsewhere")

    def move(event: dict[str, Any]) -> bool:
        if at("unet", 1)(event):
            session.path.rename(elsewhere)
        return False

    life = Life(session, until=move)
    with pytest.raises(SessionBusy, match="was renamed to 'elsewhere' while it was in use"):
        life.run()
    assert not session.path.exists()
    assert Life(Session.open(elsewhere)).run() == "finished"


def test_what_fits_a_recipe_to_a_machine_may_change_and_is_told(make_session: Made) -> None:
    session = make_session("fits", **SHORT)
    assert Life(session, until=at("unet", 2)).run() == "stopped"
    life = Life(session.with_config(session.config.changed({"gradient_checkpointing": True})))
    assert life.run() == "finished"
    assert life.findings() == [
        "Resuming with different hardware or precision (gradient checkpointing False -> True); "
        "results match only up to rounding"
    ]


def test_a_finished_session_does_not_claim_settings_it_was_not_trained_with(make_session: Made) -> None:
    session = make_session("claims", **SHORT)
    assert Life(session).run() == "finished"
    for change in ({"seed": 99}, {"unet.steps": 4}, {"unet.learning_rate": 0.01}):
        changed = session.with_config(session.config.changed(change))
        with pytest.raises(TrainingError, match="changed since step"):
            Life(changed).run()


def test_nothing_to_train_is_said(make_session: Made) -> None:
    session = make_session("nothing", text_encoder__steps=0, unet__steps=0)
    with pytest.raises(TrainingError, match="both stages have 0 steps"):
        training.train(session)


def test_class_images_of_another_prompt_are_set_aside(make_session: Made, photos: list[Path]) -> None:
    session = make_session("zebra", text_encoder__steps=0, unet__steps=1, prior__class_images=2)
    own = session.class_images / "mine.png"
    shutil.copy(photos[0], own)
    assert Life(session).run() == "finished"
    first = (session.class_images / "class-0001.png").read_bytes()
    changed = session.with_config(session.config.changed({"prior.prompts": "a photo of a zebra"}))
    for folder in session.checkpoint_folders:
        shutil.rmtree(folder / "unet-000001")
    life = Life(changed)
    assert life.run() == "finished"
    assert (session.class_images / "set-aside-1" / "class-0001.png").read_bytes() == first
    assert own.exists()
    with Image.open(session.class_images / "class-0001.png") as picture:
        assert picture.info["parameters"].startswith("a photo of a zebra\n")
    assert life.findings()[0] == "Moved class images of another prompt or other settings (1) to set-aside-1"


def test_a_persons_edit_of_session_yaml_during_training_stays(make_session: Made) -> None:
    session = make_session("edited", **SHORT)

    def edit(event: dict[str, Any]) -> bool:
        if at("unet", 1)(event):
            now = Session.open(session.path)
            now.with_config(now.config.changed({"checkpoints.every_minutes": 3.0}))
        return False

    assert Life(session, until=edit).run() == "finished"
    record = Session.open(session.path).record
    assert record.config.checkpoints.every_minutes == 3.0
    assert [run.outcome for run in record.runs] == ["finished"]


def test_a_sample_that_cannot_be_made_does_not_end_the_training(make_session: Made, monkeypatch: Any) -> None:
    def full(self: Sampler, *_: Any) -> None:
        raise StorageError("the disk is full", where="samples")

    monkeypatch.setattr(Sampler, "_write", full)
    life = Life(make_session("unsampled", **SHORT, samples__every_steps=4))
    assert life.run() == "finished"
    assert life.findings()[-1] == "No samples of step 5: samples: the disk is full"


def test_a_bug_is_noted_in_the_history(make_session: Made, monkeypatch: Any) -> None:
    session = make_session("crashes", **SHORT)
    monkeypatch.setattr(stage_run, "make_optimizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Life(session).run()
    assert [run.outcome for run in Session.open(session.path).record.runs] == ["crashed"]


def test_want_of_memory_is_one_line_with_what_can_be_done(make_session: Made, monkeypatch: Any) -> None:
    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(stage_run, "make_optimizer", too_much)
    with pytest.raises(TrainingError, match=r"CUDA out of memory\. Tried to allocate 2 GiB.*it ran out for weights"):
        Life(make_session("large", **SHORT)).run()


def test_a_full_cache_disk_is_one_line_and_a_damaged_cache_file_is_made_again(
    make_session: Made, small_disk: Callable[[str], Path], monkeypatch: Any
) -> None:
    session = make_session("cached", **SHORT)
    disk = small_disk("8k")
    monkeypatch.setenv("FASTDB_CACHE", str(disk))
    with pytest.raises(StorageError, match="the disk is full"):
        Life(session).run()
    larger = small_disk("256m")
    monkeypatch.setenv("FASTDB_CACHE", str(larger))
    assert Life(session, until=at("text_encoder", 1)).run() == "stopped"
    cached = sorted((larger / "latents").iterdir())
    assert len(cached) == 3
    cached[0].write_bytes(b"not a safetensors file")
    assert Life(session).run() == "finished"


def test_words_of_every_kind_come_through_the_events(tmp_path: Path) -> None:
    odd = "line\u2028separator \u0085 next \ud800 half \N{DOG FACE}"
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("warning", message=odd)
    log.emit("end", outcome="failed", message=odd)
    log.close()
    assert [event["message"] for event in read_events(log.path)] == [odd, odd]


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps({"event": "end", "outcome": "finished"}) + "\n"
    path.write_text('{"event": "plan", "lines": []}\n' + whole[:9])

    def finish() -> None:
        with open(path, "a") as file:
            file.write(whole[9:])

    timer = threading.Timer(0.3, finish)
    timer.start()
    assert [event["event"] for event in follow_events(path, timer.is_alive)] == ["plan", "end"]


def test_a_writer_that_is_gone_ends_the_following(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "plan", "lines": []}\n{"event": "st')
    assert [event["event"] for event in follow_events(path, lambda: False)] == ["plan"]
    assert list(follow_events(tmp_path / "missing.jsonl", lambda: False)) == []


def test_a_prompt_that_is_cut_is_told(make_session: Made) -> None:
    session = make_session("long", **SHORT, captions__instance_prompt="a photo of sks cup " + "on a red table " * 30)
    life = Life(session, until=at("text_encoder", 1))
    assert life.run() == "stopped"
    assert "is longer than 77 tokens; its end is ignored" in life.findings()[0]
