"""Exports are found by the name of their file or of their session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.commands import models, sessions
from fastdb.errors import ModelError
from fastdb.models.convert import convert
from fastdb.sessions.exports import locate_file, locate_models
from fastdb.sessions.session import Session
from tests.test_cli import fastdb


@pytest.fixture(scope="module")
def model(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model in one file."""
    return convert(mini, tmp_path_factory.mktemp("model") / "model.safetensors").path


@pytest.fixture
def session(sessions_folder: Path, mini: Path, model: Path) -> Session:
    made = sessions.new("cup", mini)
    for name in ("cup.safetensors", "cup_step_120.safetensors"):
        shutil.copy(model, made.path / name)
    return made


def test_a_bare_file_name_is_searched_in_the_sessions_after_the_current_folder(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export = session.path / "cup_step_120.safetensors"
    assert locate_file("cup_step_120.safetensors") == export
    assert models.inspect("cup_step_120.safetensors").path == export
    assert models.convert("cup_step_120.safetensors", tmp_path / "copy.ckpt") == tmp_path / "copy.ckpt"
    assert locate_file("nothing.safetensors") == Path("nothing.safetensors")
    assert locate_file("./cup_step_120.safetensors/x") == Path("./cup_step_120.safetensors/x")
    (tmp_path / "cup_step_120.safetensors").write_bytes(b"")
    assert locate_file("cup_step_120.safetensors") == Path("cup_step_120.safetensors")


def test_an_export_can_be_the_base_model_by_its_file_name(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = sessions.new("other", "cup_step_120.safetensors")
    assert other.record.base_model.folder == str(session.path / "cup_step_120.safetensors")


def test_a_name_in_several_sessions_is_refused_with_the_paths(session: Session) -> None:
    other = sessions.new("other", "mini")
    shutil.copy(session.path / "cup.safetensors", other.path / "cup.safetensors")
    with pytest.raises(ModelError) as caught:
        locate_file("cup.safetensors")
    for folder in (session.path, other.path):
        assert str(folder / "cup.safetensors") in str(caught.value)
    assert locate_file(other.path / "cup.safetensors") == other.path / "cup.safetensors"


def test_a_session_stands_for_its_exports(session: Session) -> None:
    exports = [session.path / "cup.safetensors", session.path / "cup_step_120.safetensors"]
    assert locate_models("cup") == locate_models(session.path) == exports
    sessions.new("empty", "mini")
    with pytest.raises(ModelError, match=r"^empty has no exported file\. Create it with: fastdb export empty$"):
        locate_models("empty")


def test_inspect_shows_each_export_of_a_session(session: Session) -> None:
    done = fastdb("inspect", "cup", "--root", session.path.parent)
    assert done.code == 0, done
    for name in ("cup.safetensors", "cup_step_120.safetensors"):
        assert name in done.out
