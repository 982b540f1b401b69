"""Verbs of `fastdb.interactive`, their results, errors and output."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from fastdb import interactive
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.compressed_checkpoint import raw_file
from fastdb.commands import results, sessions, training
from fastdb.errors import (
    ConfigError,
    FastDBError,
    ImageError,
    ModelError,
    SessionBusy,
    SessionError,
    SessionExists,
    SessionNotFound,
    StorageError,
    TrainingError,
)
from fastdb.images.photos import read_photo
from fastdb.sessions.session import Session
from fastdb.training import process

SETTINGS: dict[str, Any] = {
    "resolution": 64,
    "text_encoder.steps": 4,
    "unet.steps": 6,
    "checkpoints.every_steps": 3,
    "checkpoints.keep_every": 3,
}


@pytest.fixture
def session(mini: Path, photos: list[Path]) -> Session:
    """A new session of one photo."""
    return sessions.new("cup", mini, photos[2:], token="sks", class_word="cup", settings=SETTINGS)


@pytest.fixture(scope="module")
def finished(mini: Path, photos: list[Path], common: Path) -> tuple[Path, str]:
    """A session trained to its end by a trainer that was let go and then followed, and what the two calls returned."""
    root = common / "workflow"
    with FileLock(common / "workflow.lock"):
        if not (root / "said").exists():
            sessions.new("cup", mini, photos[2:], token="sks", class_word="cup", root=root, settings=SETTINGS)
            said = [training.train("cup", root=root, follow=False)]
            said.append(training.train("cup", root=root))
            process._children[-1].wait()  # or Python complains of it at the end
            (root / "said").write_text(" ".join(said))
    return root / "cup", (root / "said").read_text()


@pytest.fixture
def trained(finished: tuple[Path, str], sessions_folder: Path) -> Session:
    """A copy of the finished session for this test."""
    return Session.open(shutil.copytree(finished[0], sessions_folder / "cup"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def no_photo(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"photos": [photos[0], folder / "gone.png"]}


def no_photos(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"photos": [photos[0], folder]}


def no_base(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"base": folder / "gone"}


def other_base(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"base": folder}


def half_base(photos: list[Path], folder: Path) -> dict[str, Any]:
    half = folder.parent / "half"
    shutil.copytree(workflow_base(), half)
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return {"base": half}


def workflow_base() -> Path:
    from fastdb.models.registry import MINI
    from fastdb.models.resolve import resolve_base

    return resolve_base(MINI).folder


def bad_setting(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"settings": {"unet.step": 4, "resolution": 65}}


def bad_name(photos: list[Path], folder: Path) -> dict[str, Any]:
    return {"name": "../cup"}


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        (no_photo, ImageError, "gone.png: there is no such file or folder"),
        (no_photos, ImageError, "the folder contains no photos"),
        (no_base, ModelError, "gone: there is no such file or folder"),
        (other_base, ModelError, "has no model_index.json"),
        (half_base, ModelError, "has no diffusion_pytorch_model.safetensors"),
        (bad_setting, ConfigError, "there is no setting unet.step (did you mean unet.steps?)"),
        (bad_setting, ConfigError, "resolution is 65, but must be a multiple of 64"),
        (bad_name, SessionError, "cannot be the name of a session"),
    ],
)
def test_a_mistake_in_new_makes_nothing(
    wrong: Callable[[list[Path], Path], dict[str, Any]],
    kind: type[FastDBError],
    said: str,
    mini: Path,
    photos: list[Path],
    tmp_path: Path,
    sessions_folder: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    asked = {"name": "cup", "base": mini, "photos": photos, "settings": SETTINGS}
    asked |= wrong(photos, tmp_path / "empty")
    with pytest.raises(kind) as caught:
        sessions.new(**asked)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert not sessions_folder.exists()


def test_new_beside_one_of_its_name_leaves_that_alone(session: Session, mini: Path, photos: list[Path]) -> None:
    before = tree(session.path)
    with pytest.raises(SessionExists):
        sessions.new("cup", mini, photos)
    assert tree(session.path) == before
    assert os.listdir(session.path.parent) == ["cup"]


def test_new_says_the_prompt_it_made_up(session: Session, mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.config.captions.instance_prompt == "a photo of sks cup"
    cases = [({"token": "sks"}, "a photo of sks"), ({"class_word": "dog"}, "a photo of dog"), ({}, "")]
    for number, (words, prompt) in enumerate(cases):
        made = interactive.new(f"s{number}", mini, **words)
        assert made.config.captions.instance_prompt == prompt
        assert (f"Instance prompt: {prompt!r}" in capsys.readouterr().out) == bool(prompt)
    kept = interactive.new("kept", mini, token="sks", settings={"captions.instance_prompt": "sks at sea"})
    assert kept.config.captions.instance_prompt == "sks at sea"


def test_a_photo_that_cannot_be_used_is_named_and_the_others_come_in(
    session: Session, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:5000])
    with pytest.raises(ImageError) as caught:
        interactive.add_images(session, [photos[0], broken, photos[1]])
    assert str(caught.value) == (
        "cup: 1 of 3 photos cannot be used; 2 were added. Fix or remove the photos named above."
    )
    assert f"Skipping photo {broken}: " in capsys.readouterr().out
    names = ["astronaut.png", "cat.png", "cup.png"]
    for folder in (session.originals, session.instance_images):
        assert sorted(path.name for path in folder.glob("*.*g")) == names
    assert (session.originals / "cat.png").read_bytes() == photos[0].read_bytes()
    with Image.open(session.path / "instance_images.png") as sheet:
        assert min(sheet.size) > 100


def test_when_no_photo_can_be_used_nothing_changes(session: Session, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    before = tree(session.path)
    with pytest.raises(ImageError, match="1 of 1 photos cannot be used; 0 were added"):
        sessions.add_images(session, [tmp_path / "broken.jpg"])
    with pytest.raises(ImageError, match="no photos were given"):
        sessions.add_images(session, [])
    assert tree(session.path) == before


def test_photos_are_not_added_while_it_trains(
    session: Session, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = process.Running(os.getpid(), Path("nowhere"), lambda: True)
    monkeypatch.setattr(process, "find", lambda session: running)
    before = tree(session.path)
    with pytest.raises(SessionBusy, match="is being trained"):
        sessions.add_images(session, photos)
    with pytest.raises(SessionBusy, match="is being trained"):
        training.train(session, restart=True)
    with pytest.raises(ConfigError, match="training is running with other settings"):
        training.train(session, settings={"unet.steps": 9})
    assert tree(session.path) == before


def test_training_that_is_let_go_is_followed_by_the_next_call(finished: tuple[Path, str]) -> None:
    """The second call comes as soon as it is known that there is a trainer, long before its first step."""
    path, said = finished
    assert said == "started finished"
    session = Session.open(path)
    assert [run.outcome for run in session.record.runs] == ["finished"], "one trainer, and not one for each call"
    steps = {(checkpoint.stage, checkpoint.step) for checkpoint in complete(session.checkpoints)}
    assert {("text_encoder", 4), ("unet", 6)} <= steps


def test_what_is_finished_is_not_trained_again(trained: Session, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(trained.checkpoints)
    assert interactive.train("cup") == "finished"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "All steps of cup are done. Make the file to use with: fastdb export cup; add steps with: "
        "fastdb extend cup --steps N"
    ]
    assert tree(trained.checkpoints) == before
    assert len(Session.open("cup").record.runs) == 1


def test_a_refused_setting_leaves_the_session_as_it_was(trained: Session) -> None:
    before = tree(trained.path)
    with pytest.raises(ConfigError, match=r"unet\.steps is -1"):
        training.train("cup", settings={"unet.steps": -1})
    with pytest.raises(ConfigError, match="seed 0 -> 5"):
        training.train("cup", settings={"seed": 5})
    for image in trained.instance_images.iterdir():
        image.unlink()
    with pytest.raises(ImageError, match="the folder has no instance images"):
        training.train("cup", settings={"unet.steps": 9}, restart=True)
    left = tree(trained.path)
    assert {name: data for name, data in before.items() if not name.startswith("instance_images/")} == left


def test_an_export_says_how_far_the_session_is(trained: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, stands in (
        ("", "text_encoder 4/4, unet 6/6"),
        ("unet-000006", "text_encoder 4/4, unet 3/6"),
        ("unet-000003", "text_encoder 4/4, unet 0/6"),
        ("text_encoder-000004", "text_encoder 3/4, unet 0/6"),
    ):
        if stage:
            shutil.rmtree(trained.checkpoints / stage)
        (file,) = interactive.export("cup", formats=["safetensors"])
        assert f"Exporting cup: {stands}\n" in capsys.readouterr().out
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata()
        assert told["fastdb.trained"] == stands
        assert told["fastdb.instance_prompt"] == "a photo of sks cup"
        assert told["modelspec.prediction_type"] == "epsilon"
    before = file.read_bytes()
    shutil.rmtree(trained.checkpoints / "text_encoder-000003")
    with pytest.raises(TrainingError, match=r"^cup: there is no valid checkpoint to export"):
        interactive.export("cup")
    assert file.read_bytes() == before


def test_an_earlier_checkpoint_is_exported_by_its_step(
    trained: Session, mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `fastdb evaluate` names can be had."""
    (newest,), (file,) = (interactive.export("cup", formats=["safetensors"], step=step) for step in (None, 3))
    assert file.name == "cup_step_3.safetensors"
    assert "Exporting cup: text_encoder 4/4, unet 3/6\n" in capsys.readouterr().out
    kept = load_file(raw_file(trained.checkpoints / "unet-000003" / "unet.packed", mini))["conv_in.weight"].half()
    exported = {path: load_file(path)["model.diffusion_model.input_blocks.0.0.weight"] for path in (file, newest)}
    assert torch.equal(exported[file], kept)
    assert not torch.equal(exported[newest], kept)
    assert [path.name for path in trained.exports] == ["cup.safetensors", "cup_step_3.safetensors"]
    before = tree(trained.path)
    with pytest.raises(ConfigError, match=r"no checkpoint of the UNet stage at step 5\. Existing steps: 3, 6\."):
        interactive.export("cup", step=5)
    (trained.checkpoints / "unet-000003" / "state.json").write_text("{")
    with pytest.raises(TrainingError, match=r"step is damaged \(unet-000003: .*Choose another step \(6\)"):
        interactive.export("cup", step=3)
    (trained.checkpoints / "unet-000003" / "state.json").write_bytes(before["checkpoints/unet-000003/state.json"])
    shutil.rmtree(trained.checkpoints / "text_encoder-000004")
    with pytest.raises(TrainingError, match="the text encoder of step 4, with which the UNet was trained"):
        interactive.export("cup", step=3)


def test_an_export_draws_what_its_session_draws(trained: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for precision, most in (("fp32", 1), ("fp16", 16)):
        file, _ = interactive.export("cup", precision=precision, render=True)  # type: ignore[arg-type]
        lines = [line for line in capsys.readouterr().out.splitlines() if "generates the picture of its source" in line]
        assert len(lines) == 2
        found = [
            re.search(r"largest difference (\d+) of 255, mean [\d.]+, (\d+) allowed; see ", line) for line in lines
        ]
        assert all(match and int(match[1]) <= most == int(match[2]) for match in found)
        assert file.with_name("cup.render.png").stat().st_size > 1000


def test_both_kinds_are_exported_unless_one_is_named(trained: Session) -> None:
    assert [path.name for path in results.export("cup")] == ["cup.safetensors", "cup.ckpt"]
    half = [path.stat().st_size for path in trained.exports]
    whole = [path.stat().st_size for path in reversed(results.export("cup", precision="fp32"))]
    assert [path.name for path in trained.exports] == ["cup.ckpt", "cup.safetensors"]
    assert all(1.8 < large / small < 2 for large, small in zip(whole, half, strict=True))
    assert not [path.name for path in trained.path.iterdir() if path.name.endswith(".part")]


def test_pictures_go_where_they_are_wanted(trained: Session, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    paths = results.generate("cup", "a photo of sks cup", output=folder, seed=4, count=2, steps=2)
    assert paths == [folder / "0001-seed4.png", folder / "0002-seed5.png"]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (64, 64)
            assert picture.text["parameters"].startswith("a photo of sks cup\nSteps: 2, Sampler: DPM++ 2M")
    (own,) = results.generate(trained, "a photo of sks cup", steps=1, width=128, sampler="euler A")
    assert own == trained.path / "generated" / "0001-seed0.png"
    assert [read_photo(path).size for path in (own, paths[0])] == [(128, 64), (64, 64)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sampler": "euler b"}, "sampler 'euler b': there is no such sampler. Did you mean Euler a?"),
        ({"steps": 0}, "steps 0 is not between 1 and 1000"),
        ({"guidance": -1.0}, "guidance -1.0 is not between 0 and 50"),
        ({"width": 65}, "width 65 is not a multiple of 8"),
    ],
)
def test_a_request_that_cannot_be_is_said_before_a_model_is_loaded(
    session: Session, asked: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        interactive.generate("cup", "a cup", **asked)
    assert str(caught.value).startswith(said)
    assert "loading" not in capsys.readouterr().out
    assert not (session.path / "generated").exists()


def test_a_file_in_place_of_the_output_folder_is_said(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is not a folder"):
        results.generate("cup", "a cup", steps=1, output=tmp_path / "file")


def test_what_there_is_is_shown(trained: Session, mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("dog", mini, settings={"unet.steps": 7})
    (trained.path.parent / "broken").mkdir()
    (trained.path.parent / "broken" / "session.yaml").write_text("{")
    capsys.readouterr()
    assert [session.name for session in interactive.list_sessions()] == ["cup", "dog"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"2 sessions in {trained.path.parent}"
    assert said[1].split() == ["name", "training", "images", "created"]
    rows = [re.split(" {2,}", line) for line in said[2:4]]
    assert [row[:3] for row in rows] == [
        ["cup", "text_encoder 4/4, unet 6/6", "1"],
        ["dog", "text_encoder 0/350, unet 0/7", "0"],
    ]
    assert said[4].startswith("Cannot open: ")
    assert len(said) == 5


def test_that_there_is_nothing_is_said(sessions_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interactive.list_sessions() == []
    assert capsys.readouterr().out == f"No sessions in {sessions_folder}\n"
    assert not sessions_folder.exists()


def test_a_session_is_shown_with_all_that_matters(trained: Session, capsys: pytest.CaptureFixture[str]) -> None:
    interactive.export("cup", formats=["ckpt"])
    capsys.readouterr()
    assert interactive.show("cup").path == trained.path
    lines = capsys.readouterr().out.splitlines()
    settings = [line.strip() for line in lines if line.startswith(" ")]
    facts = {name: value.strip() for name, value in (line.split("  ", 1) for line in lines if line[0] != " ")}
    assert facts.pop("base model") == trained.record.base_model.folder
    assert facts.pop("settings") == "resolution 64"
    assert settings[0] == "text_encoder.steps 4"
    assert settings[1].startswith("unet.steps 6")
    assert facts == {
        "session": "cup",
        "folder": str(trained.path),
        "subject": "sks cup",
        "instance prompt": "a photo of sks cup",
        "instance images": "1",
        "class images": "0 of 0",
        "training": "text_encoder 4/4, unet 6/6",
        "runs": "finished",
        "exports": "cup.ckpt (text_encoder 4, unet 6)",
    }


def test_opening_reads_again_what_was_written_since(session: Session) -> None:
    session.with_run_begun("text_encoder step 0")
    assert session.record.runs == ()
    for again in (Session.open(session), Session.open("cup"), Session.open(session.path)):
        assert [run.begins for run in again.record.runs] == ["text_encoder step 0"]
    with pytest.raises(SessionNotFound, match="Did you mean cup"):
        Session.open("cop")


def test_stopping_says_whether_there_was_one(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert interactive.stop("cup") is False
    assert "cup is not being trained on this machine" in capsys.readouterr().out
    assert interactive.stop(session) is False
