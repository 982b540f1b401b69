"""What a form or a command line asks of an existing session is applied or reported, never dropped in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import fastdb
from fastdb import cli
from fastdb.commands import differences, results, session_changes, sessions, training
from fastdb.commands.session_changes import open_or_new
from fastdb.commands.session_warnings import setting_warnings
from fastdb.config import Config
from fastdb.errors import ConfigError, SessionBusy
from fastdb.images.photo_files import photos_in
from fastdb.models.mini_settings import recommended
from fastdb.models.resolve import is_base
from fastdb.reporting import SILENT, Note, Report
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord

SETTINGS: dict[str, Any] = {
    "token.try": "off",
    "stop.check_loss": False,
    "prior.class_images": 0,
    "text_encoder.steps": 1,
    "unet.steps": 2,
}


class Notes(Report):
    """Keeps the notes it receives."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def of(self, kind: str) -> dict[str, str]:
        return {note.subject: note.reason for note in self.notes if note.kind == kind}


@pytest.fixture
def fresh(photos: list[Path]) -> Session:
    """A session that no trainer has touched."""
    return sessions.new("mug", "mini", photos[:2], token="sks", class_word="mug", settings=SETTINGS)


@pytest.fixture
def begun_root(photos: list[Path], common: Path) -> Path:
    """A root with a session that was trained to its end, made once per run."""
    root = common / "changes"
    with FileLock(common / "changes.lock"):
        if not (root / "done").exists():
            sessions.new("mug", "mini", photos[:2], token="sks", class_word="mug", root=root, settings=SETTINGS)
            assert training.train("mug", root=root) == "finished"
            (root / "done").touch()
    return root


@pytest.fixture
def begun(begun_root: Path, sessions_folder: Path) -> Session:
    """A copy of the trained session."""
    shutil.copytree(begun_root / "mug", sessions_folder / "mug")
    return Session.open("mug")


@pytest.fixture
def begun_export(common: Path, begun_root: Path, sessions_folder: Path) -> str:
    """The name of an exported file in a session's folder."""
    session = Session.open(shutil.copytree(begun_root / "mug", sessions_folder / "dog"))
    [file] = results.export(session, formats=["safetensors"])
    return file.name


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_group_keeps_the_settings_it_does_not_name() -> None:
    config = Config().changed({"unet.ema_decay": 0.999, "text_encoder.mode": "joint", "unet.learning_rate": 6e-4})
    changed = config.changed({"text_encoder": {"steps": 350}, "unet": {"steps": 1500}})
    assert (changed.unet.ema_decay, changed.unet.learning_rate, changed.unet.steps) == (0.999, 6e-4, 1500)
    assert changed.text_encoder.mode == "joint"


def test_empty_values_ask_for_nothing(fresh: Session) -> None:
    report = Notes()
    assert open_or_new("mug", report=report).record == fresh.record
    assert list(report.of("existing session opened")) == ["mug"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"base": "sd15"}, "base model mini -> sd15"),
        ({"token": "ohwx"}, "token sks -> ohwx"),
        ({"class_word": "cat"}, "class word mug -> cat"),
        ({"settings": {"resolution": 128}}, "resolution 64 -> 128"),
        ({"settings": {"unet": {"steps": 9}, "unet.ema_decay": 0.5}}, "unet.steps 2 -> 9; unet.ema_decay 0.0 -> 0.5"),
    ],
)
def test_before_training_a_difference_is_an_error_that_names_both_ways(
    fresh: Session, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match="change_session") as error:
        open_or_new("mug", **asked)
    assert named in str(error.value)
    assert "another session name" in str(error.value)
    assert Session.open("mug").record == fresh.record


def test_a_change_that_is_asked_for_is_made_and_reported(fresh: Session) -> None:
    report = Notes()
    settings = {"unet.steps": 9, "resolution": 128}
    session = open_or_new("mug", token="ohwx", class_word="cat", settings=settings, change=True, report=report)
    assert session.record == Session.open("mug").record
    assert (session.record.subject.token, session.record.subject.class_word) == ("ohwx", "cat")
    assert session.config.captions.instance_prompt == "a photo of ohwx cat"
    assert (session.config.unet.steps, session.config.text_encoder.steps) == (9, 1)
    assert any("cat" in prompt for prompt in session.config.prior.prompts)
    changed = report.of("value changed")
    assert changed["token"] == "sks -> ohwx"
    assert changed["unet.steps"] == "2 -> 9"
    # The crops follow the resolution.
    assert {size(path) for path in photos_in(session.instance_images)} == {(128, 128)}
    assert sessions.check("mug") == []


def test_crops_that_a_person_edited_or_removed_stay_so(fresh: Session) -> None:
    kept, removed = photos_in(fresh.instance_images)
    Image.new("RGB", (300, 300), "red").save(kept)
    removed.unlink()
    session = open_or_new("mug", settings={"resolution": 128}, change=True)
    assert photos_in(session.instance_images) == [kept]
    assert size(kept) == (300, 300)


def test_crops_that_were_accepted_stay_and_a_base_named_by_its_file_is_recognised(
    fresh: Session, begun_export: str
) -> None:
    kept, _ = photos_in(fresh.instance_images)
    Image.new("RGB", (64, 64), "red").save(kept)
    sessions.check("mug", accept=True)
    session = open_or_new("mug", settings={"resolution": 128}, change=True)
    assert sorted(size(path) for path in photos_in(session.instance_images)) == [(64, 64), (128, 128)]
    made = open_or_new("second", begun_export)
    assert open_or_new("second", begun_export).record == made.record


def test_another_base_model_brings_its_own_defaults(fresh: Session, mini: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(mini, tmp_path / "my model")
    session = open_or_new("mug", copy, change=True)
    assert session.record.base_model.folder == str(copy)
    assert (session.config.unet.steps, session.config.text_encoder.steps) == (2, 1)  # chosen by a person
    assert session.config.unet.learning_rate == Config().unet.learning_rate  # mini's own
    assert session.config.prior.prompts == ()


def test_a_base_model_that_was_replaced_is_taken_as_it_is_now(mini: Path, tmp_path: Path, photos: list[Path]) -> None:
    base = shutil.copytree(mini, tmp_path / "base")
    session = sessions.new("cat", base, photos[:1], token="sks", class_word="cat")
    told = Notes()
    assert session_changes.change(session, base=base, report=told).record == session.record
    assert told.notes == [Note("nothing to change", "cat")]
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = session_changes.change(session, base=base, report=told)
    assert changed.record.base_model.fingerprint != session.record.base_model.fingerprint
    assert told.notes[1:] == [Note("value changed", "base model", f"{base} as it was -> {base} as it is now")]
    sessions.check(changed)


def test_once_training_has_begun_the_session_keeps_its_values_and_tells(begun: Session) -> None:
    report = Notes()
    session = open_or_new("mug", "sd15", token="ohwx", settings={"unet.steps": 9}, change=True, report=report)
    assert session.record == begun.record
    assert report.of("value kept") == {
        "base model": "mini, not sd15",
        "token": "sks, not ohwx",
        "unet.steps": "2, not 9",
    }


def test_python_trains_a_begun_session_with_its_own_settings_and_prints_the_difference(
    begun: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"text_encoder": {"steps": 350}, "unet": {"steps": 1500, "learning_rate": 2e-6}}
    assert fastdb.train("mug", settings=settings) == "finished"
    printed = capsys.readouterr().out
    assert "keeps its own unet.steps: 2, not 1500" in printed
    assert "keeps its own text_encoder.steps: 1, not 350" in printed
    assert Session.open("mug").config == begun.config


def test_the_command_line_refuses_and_names_three_ways(begun: Session) -> None:
    with pytest.raises(ConfigError, match=r"unet\.steps 2 -> 9") as error:
        training.train("mug", settings={"unet.steps": 9})
    for way in ("fastdb extend mug", "--from-step", "fastdb new"):
        assert way in str(error.value)
    assert Session.open("mug").record == begun.record


def test_checkpoint_and_sample_settings_may_change_at_any_time(begun: Session) -> None:
    report = Notes()
    assert training.train("mug", settings={"checkpoints.keep_last": 3}, report=report) == "finished"
    assert report.of("value changed") == {"checkpoints.keep_last": "2 -> 3"}
    assert Session.open("mug").config.checkpoints.keep_last == 3


def test_the_three_ways_work(begun: Session, photos: list[Path]) -> None:
    training.extend("mug", 1)
    assert training.train("mug") == "finished"
    assert sessions.show("mug").progress == "text_encoder 1/1, unet 3/3"
    settings = {"unet.steps": 1, "unet.extensions": []}
    assert training.train("mug", settings=settings, from_step=0) == "finished"
    assert sessions.show("mug").progress == "text_encoder 1/1, unet 1/1"


def test_an_extended_session_keeps_its_extension_through_a_form(begun: Session) -> None:
    training.extend("mug", 1)
    assert fastdb.train("mug", settings={"unet": {"steps": 2, "learning_rate": 6e-4}}) == "finished"
    assert sessions.show("mug").progress == "text_encoder 1/1, unet 3/3"


def test_before_training_settings_are_applied_and_printed(fresh: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert fastdb.train("mug", settings={"unet": {"steps": 1}}) == "finished"
    assert "Changed unet.steps: 2 -> 1" in capsys.readouterr().out
    assert sessions.show("mug").progress == "text_encoder 1/1, unet 1/1"


def test_a_session_that_another_machine_trains_is_not_changed(fresh: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "in_use", lambda folder: "another host")
    report = Notes()
    assert open_or_new("mug", token="ohwx", change=True, report=report).record == fresh.record
    assert report.of("value kept") == {"token": "sks, not ohwx"}


SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("base", "folder", "source", "same"),
    [
        ("mini", "mini", "", True),
        ("mini", "/models/a.safetensors", "", False),
        ("sd15", "mini", "", False),
        ("sd15", "/cache/x", f"{SD15}@0123abc", True),
        ("1.5", "/cache/x", f"{SD15}@0123abc", True),
        (SD15, "/cache/x", f"{SD15}@0123abc", True),
        (f"{SD15}@0123abc", "/cache/x", f"{SD15}@0123abc", True),
        (f"{SD15}@feed", "/cache/x", f"{SD15}@0123abc", False),
        ("someone/else", "/cache/x", f"{SD15}@0123abc", False),
        (f"{SD15}/a.safetensors", "/cache/x", f"{SD15}@0123abc/a.safetensors", True),
        (f"{SD15}/b.safetensors", "/cache/x", f"{SD15}@0123abc/a.safetensors", False),
        ("/models/a.safetensors", "/models/a.safetensors", "", True),
        ("/models/b.safetensors", "/models/a.safetensors", "", False),
        ("sd15", "/models/a.safetensors", "", False),
    ],
)
def test_a_base_model_is_recognised_by_its_other_names(base: str, folder: str, source: str, same: bool) -> None:
    assert is_base(base, BaseModelRecord(folder=folder, fingerprint="0", source=source)) is same


def test_a_session_in_training_refuses_other_settings_of_a_restart(begun: Session) -> None:
    class Trainer:
        pid = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.process, "find", lambda session: Trainer())
        with pytest.raises(SessionBusy, match="fastdb stop mug"):
            training.train("mug", restart=True)


def test_the_command_line_changes_a_session_before_training(fresh: Session, capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(cli.app, ["change", "mug", "--token", "ohwx", "--set", "unet.steps=9"])
    assert done.exit_code == 0, done.output
    session = Session.open("mug")
    assert (session.record.subject.token, session.config.unet.steps) == ("ohwx", 9)
    assert session.config.captions.instance_prompt == "a photo of ohwx mug"
    with pytest.raises(ConfigError, match="fastdb change"):
        training.train("mug", settings={"token": "qqx"})


def test_a_begun_session_is_not_changed_and_its_export_names_no_untrained_token(begun: Session) -> None:
    with pytest.raises(ConfigError, match=r"token sks -> ohwx.* fastdb duplicate"):
        session_changes.change("mug", token="ohwx")
    report = Notes()
    settings = {"captions.instance_prompt": "a photo of qqq mug", "unet.steps": 1}
    assert training.train("mug", settings=settings, restart=True, report=report) == "finished"
    assert report.of("token not in prompt") == {"sks": "a photo of qqq mug"}
    [file] = results.export("mug", formats=["safetensors"])
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["modelspec.trigger_phrase"] == ""


def test_the_method_decides_the_default_rates(tmp_path: Path) -> None:
    """Rates that somebody chose stay."""
    made = sessions.new("a", "mini", root=tmp_path, settings={"method": "lora"})
    default = Config().changed(recommended("mini", "", "lora"))
    assert made.config.unet.learning_rate == default.unet.learning_rate
    assert made.config.unet.learning_rate != Config().changed(recommended("mini", "")).unet.learning_rate
    full = session_changes.change(made, settings={"method": "full"})
    assert full.config.unet.learning_rate == Config().changed(recommended("mini", "")).unet.learning_rate
    assert differences.agreed_settings(full, {"method": "lora"}, False, False, SILENT).unet == default.unet
    chosen = differences.agreed_settings(full, {"method": "lora", "unet.learning_rate": 1e-3}, False, False, SILENT)
    assert chosen.unet.learning_rate == 1e-3
    assert chosen.text_encoder == default.text_encoder


def test_settings_of_a_lora_without_the_method_are_reported(tmp_path: Path) -> None:
    made = sessions.new("a", "mini", root=tmp_path, settings={"lora.rank": 8})
    (note,) = [note for note in setting_warnings(made) if note.kind == "lora settings unused"]
    assert (note.subject, note.reason) == ("lora.rank", "a")
    changed = session_changes.change(made, settings={"method": "lora"})
    assert not [note for note in setting_warnings(changed) if note.kind == "lora settings unused"]
