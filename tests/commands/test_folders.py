"""Sessions are renamed with their exports, and deleted with what they have on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from fastdb import cli
from fastdb.commands import folders, results, sessions, training
from fastdb.errors import SessionBusy, SessionError, SessionExists, StorageError
from fastdb.runtime.paths import work_folder
from fastdb.sessions.lease_file import FILE as LEASE
from fastdb.sessions.session import Session
from fastdb.training import process

SETTINGS = {
    "token.try": "off",
    "stop.check_loss": False,
    "prior.class_images": 0,
    "text_encoder.steps": 0,
    "unet.steps": 1,
}


@pytest.fixture
def mug(photos: list[Path]) -> Session:
    return sessions.new("mug", "mini", photos[:1], token="sks", class_word="mug", settings=SETTINGS)


def test_a_renamed_session_keeps_everything(mug: Session) -> None:
    assert training.train(mug) == "finished"
    results.export(mug, formats=["safetensors"])
    renamed = folders.rename("mug", "cup")
    assert (renamed.name, renamed.record.name) == ("cup", "cup")
    assert not mug.path.exists()
    assert [path.name for path in renamed.exports] == ["cup.safetensors"]
    assert sessions.check("cup") == [], "checksums of renamed exports are known"
    assert sessions.show("cup").progress == "text_encoder 0/0, unet 1/1"
    assert training.train("cup") == "finished"


@pytest.mark.parametrize(("name", "error"), [("a/b", SessionError), ("dog", SessionExists), ("com1", SessionError)])
def test_a_name_that_cannot_be_is_refused(mug: Session, name: str, error: type[Exception]) -> None:
    sessions.new("dog", "mini")
    with pytest.raises(error):
        folders.rename("mug", name)
    assert Session.open("mug").record == mug.record


def test_checkpoints_that_are_on_this_machine_only_are_not_lost(mug: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "pending", lambda session: ["unet-000001"])
    with pytest.raises(StorageError, match="fastdb publish mug"):
        folders.rename("mug", "cup")
    assert mug.path.is_dir()


@pytest.mark.parametrize("verb", ["rename", "delete"])
def test_a_session_in_training_is_left_alone(mug: Session, verb: str) -> None:
    with process.training_lock(mug.path, mug.path / "events.jsonl"), pytest.raises(SessionBusy):
        folders.rename(mug, "cup") if verb == "rename" else folders.delete(mug, confirm=lambda removal: True)
    assert Session.open("mug").record == mug.record
    assert not (mug.path / LEASE).exists()


def test_a_deleted_session_is_gone_from_both_disks(mug: Session) -> None:
    assert training.train(mug) == "finished"
    work = work_folder(mug.path)
    assert any(work.rglob("*"))
    asked = []
    assert folders.delete("mug", confirm=lambda removal: asked.append(removal) or False) == 0  # type: ignore[func-returns-value]
    assert mug.path.is_dir()
    assert {"checkpoints", "session.yaml"} <= {name for _, name, _ in asked[0].files}
    assert folders.delete("mug", confirm=lambda removal: True) > 0
    assert not mug.path.exists()
    assert not work.exists()
    assert sessions.list_sessions().rows == ()
    # The name is free, and the new session begins with nothing of the old one.
    again = sessions.new("mug", "mini")
    assert sessions.show(again).progress == "text_encoder 0/120, unet 0/700"


def test_a_session_trained_from_the_export_follows_the_renamed_one(mug: Session) -> None:
    assert training.train(mug) == "finished"
    results.export(mug, formats=["safetensors"])
    sessions.new("second", "mug.safetensors")
    with pytest.raises(SessionBusy, match="base model of second"):
        folders.delete("mug", confirm=lambda removal: True)
    folders.rename("mug", "cup")
    record = Session.open("second").record
    assert record.base_model.folder == str(Session.open("cup").path / "cup.safetensors")
    assert Path(record.base_model.folder).is_file()


def test_exports_of_a_copied_folder_are_shown_and_get_its_new_name(mug: Session) -> None:
    for name in ("mug.safetensors", "mug_step_1.ckpt"):
        (mug.path / name).touch()
    copy = Session.open(shutil.copytree(mug.path, mug.path.with_name("mug_old")))
    assert [path.name for path in copy.exports] == ["mug.safetensors", "mug_step_1.ckpt"]
    (copy.path / "mug_old.safetensors").write_bytes(b"own")
    cup = folders.rename(copy, "cup")
    assert sorted(path.name for path in cup.path.glob("*.*t*")) == [
        "cup.safetensors",
        "cup_step_1.ckpt",
        "mug.safetensors",
    ]
    assert (cup.path / "cup.safetensors").read_bytes() == b"own"


def test_checkpoints_set_aside_on_this_machine_survive_a_new_name(mug: Session) -> None:
    aside = work_folder(mug.path) / "checkpoints" / "set-aside-1" / "unet-000001"
    aside.mkdir(parents=True)
    (aside / "unet.safetensors").write_bytes(b"only copy")
    renamed = folders.rename("mug", "cup")
    kept = work_folder(renamed.path) / "checkpoints" / "set-aside-1" / "unet-000001" / "unet.safetensors"
    assert kept.read_bytes() == b"only copy"


def test_without_a_terminal_nothing_is_deleted_and_the_option_is_named(mug: Session) -> None:
    for command in (["delete", "mug"], ["free", "mug", "--what", "samples"]):
        (mug.samples / "unet-000001-1.png").touch()
        refused = CliRunner().invoke(cli.app, command, input="")
        assert refused.exit_code == 2
        assert "there is no terminal; nothing was deleted. Run the same command with --yes" in refused.output
    assert (mug.samples / "unet-000001-1.png").exists()
    assert CliRunner().invoke(cli.app, [*command, "--yes"]).exit_code == 0


def test_the_command_line_asks_before_it_deletes(mug: Session) -> None:
    refused = CliRunner().invoke(cli.app, ["delete", "mug"], input="n\n")
    assert refused.exit_code == 0
    assert mug.path.is_dir()
    done = CliRunner().invoke(cli.app, ["rm", "mug", "--yes"])
    assert done.exit_code == 0
    assert not mug.path.exists()


@pytest.mark.parametrize(
    ("typed", "verb"), [("ls", "sessions"), ("list", "sessions"), ("status", "show"), ("resume", "train")]
)
def test_words_of_other_programs_lead_to_the_verb(typed: str, verb: str) -> None:
    helps = [CliRunner().invoke(cli.app, [word, "--help"]).output for word in (typed, verb)]
    assert f"fastdb {verb}" in helps[0] or f" {verb} " in helps[0]
    assert helps[0] == helps[1]
