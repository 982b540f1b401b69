"""Exports know how far they were trained; samples that a trainer makes again are no damage; known photos stay."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from safetensors import safe_open

from fastdb import interactive
from fastdb.checkpoints.checkpoint import Checkpoint
from fastdb.checkpoints.progress import Standing
from fastdb.commands import results, sessions, sharing, training
from fastdb.errors import StorageError
from fastdb.images.photo_files import photos_in
from fastdb.sessions import file_hashes
from fastdb.sessions.file_hashes import record_files
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.trainer import Trainer

SETTINGS = {
    "token.try": "off",
    "stop.check_loss": False,
    "prior.class_images": 0,
    "text_encoder.steps": 0,
    "unet.steps": 1,
    "samples.every_steps": 1,
}


@pytest.fixture
def mug(photos: list[Path]) -> Session:
    return sessions.new("mug", "mini", photos[:1], token="sks", class_word="mug", settings=SETTINGS)


def test_an_export_carries_its_step_and_is_stale_after_more_training(
    mug: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.train(mug) == "finished"
    [file] = results.export(mug, formats=["safetensors"])
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["fastdb.step"] == "1"
    [export] = sessions.show(mug).exports
    assert (export.file, export.trained, export.stale) == ("mug.safetensors", "text_encoder 0, unet 1", False)
    training.extend(mug, 1)
    assert training.train("mug") == "finished"
    assert sessions.check("mug") == []
    [export] = sessions.show("mug").exports
    assert export.stale
    capsys.readouterr()
    interactive.show("mug")
    assert "unet 1; stale: training went on" in capsys.readouterr().out
    results.export("mug", formats=["safetensors"])
    assert not sessions.show("mug").exports[0].stale
    # A copy without checkpoints leaves samples behind.
    copy = sharing.duplicate("mug", "copy")
    assert not list(copy.samples.glob("*.png"))
    assert copy.record.exports == ()
    assert list(sharing.duplicate("mug", "whole", checkpoints=True).samples.glob("*.png"))


def test_an_export_made_while_a_trainer_runs_is_recorded(mug: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.train(mug) == "finished"
    with process.training_lock(mug.path, mug.work / "run.jsonl"):
        assert process.find(mug) is not None
        results.export(mug)
        assert {each.trained for each in sessions.show(mug).exports} == {"text_encoder 0, unet 1"}
    # Where another machine trains, only the header tells: a record of both would be overwritten.
    monkeypatch.setattr(results, "in_use", lambda path: "elsewhere")
    training.extend(mug, 1)
    assert training.train("mug") == "finished"
    assert [each.stale for each in sessions.show(mug).exports] == [True, True]
    results.export(mug, formats=["safetensors"])
    assert Session.open(mug).record.exports[-1].trained == "text_encoder 0, unet 1"
    assert {each.file: each.stale for each in sessions.show(mug).exports} == {
        "mug.ckpt": True,
        "mug.safetensors": False,
    }


def test_two_processes_that_write_the_record_lose_nothing(mug: Session) -> None:
    mug = mug.with_run_begun("unet step 0")

    def export() -> None:
        for number in range(12):
            mug.with_exports(f"mug_{number}.safetensors", "unet 1")

    thread = threading.Thread(target=export)
    thread.start()
    for number in range(12):
        mug.with_run_ended(f"finished {number}")
    thread.join()
    record = Session.open(mug).record
    assert (len(record.exports), record.runs[-1].outcome) == (12, "finished 11")


def test_samples_that_are_made_again_are_not_taken_for_edited_ones(mug: Session) -> None:
    for name in ("unet-000001-1", "unet-000002-1", "text_encoder-000001-1", "mine"):
        Image.new("RGB", (8, 8)).save(mug.samples / f"{name}.png")
    record_files(mug.path)
    stands = Standing({"unet": Checkpoint(mug.checkpoints / "unet-000001", "unet", 1)}, ())
    Trainer._forget_samples(mug, stands)
    for path in mug.samples.glob("*.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    with pytest.raises(StorageError, match="2 files were"):
        sessions.check(mug)
    changed = {note.subject.strip("'") for note in file_hashes.changes(mug.path)}
    assert changed == {"samples/unet-000001-1.png", "samples/mine.png"}


def test_known_photos_are_not_cropped_again(
    mug: Session, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    [crop] = photos_in(mug.instance_images)
    Image.new("RGB", (64, 64), "red").save(crop)  # somebody's own crop
    before = crop.read_bytes()
    capsys.readouterr()
    interactive.add_images(mug, photos[:1])
    printed = capsys.readouterr().out
    assert "Photos that the session has already, which stay as they are: 1" in printed
    assert "cropped" not in printed
    assert crop.read_bytes() == before
    shutil.copy(photos[1], photos[1].parent / "new.png")
    try:
        interactive.add_images(mug, [photos[0], photos[1].parent / "new.png"])
    finally:
        (photos[1].parent / "new.png").unlink()
    assert len(photos_in(mug.instance_images)) == 2
