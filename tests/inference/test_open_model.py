"""Models for inference, opened from a session or an exported file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from fastdb.commands import results
from fastdb.errors import ConfigError, ModelError, SessionError, SessionNotFound
from fastdb.inference.open_model import Source, open_source
from fastdb.sessions.session import Session
from tests.other_models import wider


@pytest.fixture
def session(learned: Session, tmp_path: Path) -> Session:
    """A copy of the learned session for this test, in the folder of sessions that counts here."""
    return Session.open(shutil.copytree(learned.path, tmp_path / "sessions" / "cup"))


@pytest.fixture(scope="module")
def exported(learned: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cup.safetensors` and `cup.ckpt`, outside any session."""
    copy = Session.open(shutil.copytree(learned.path, tmp_path_factory.mktemp("made") / "cup"))
    folder = tmp_path_factory.mktemp("exported")
    for file in results.export(copy):
        shutil.move(file, folder / file.name)
    return folder


def drawn(source: Source) -> bytes:
    return source.load().generate(source.request("a photo of sks cup", steps=2))[0].tobytes()


def test_a_session_is_opened_by_name_folder_or_itself(session: Session) -> None:
    opened = [open_source(what, None, None) for what in ("cup", str(session.path), session)]
    opened.append(open_source("cup", None, session.path.parent))
    assert {source.name for source in opened} == {"cup (unet step 40)"}
    assert {source.pictures for source in opened} == {session.path / "generated"}
    assert {source.size for source in opened} == {64}
    assert len({drawn(source) for source in opened}) == 1


def test_the_progress_of_the_session_is_reported(session: Session) -> None:
    shutil.rmtree(session.checkpoints / "unet-000040")
    assert open_source("cup", None, None).name == "cup (text_encoder step 8)"
    shutil.rmtree(session.checkpoints / "text_encoder-000008")
    assert open_source("cup", None, None).name == "cup (untrained)"


def test_an_untrained_session_draws_what_its_base_model_does(session: Session, mini: Path) -> None:
    from fastdb.inference.engine import Engine
    from fastdb.models.diffusers_folder import open_base_model

    before = drawn(open_source(session, None, None))
    shutil.rmtree(session.checkpoints)
    source = open_source(session, None, None)
    base = Engine.from_base(open_base_model(mini)).generate(source.request("a photo of sks cup", steps=2))[0].tobytes()
    assert drawn(source) == base != before


def test_a_size_that_was_asked_for_goes_before_the_sessions(session: Session) -> None:
    source = open_source(session, None, None)
    assert (source.request("x").width, source.request("x").height) == (64, 64)
    assert (source.request("x", width=128, height=None).width, source.request("x", width=128).height) == (128, 64)
    assert source.request("x", steps=None).steps == 20
    with pytest.raises(ConfigError, match=r"^steps 0 is not between"):
        source.request("x", steps=0)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_an_export_in_its_session_knows_its_base_model_and_size(exported: Path, session: Session, kind: str) -> None:
    file = session.path / f"cup.{kind}"
    shutil.copy(exported / file.name, file)
    source = open_source(str(file), None, None)
    assert (source.name, source.size, source.pictures) == (file.name, 64, session.path / "generated")
    assert len(drawn(source)) == 64 * 64 * 3


def test_a_relative_path_and_a_home_are_understood(
    exported: Path, tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)
    monkeypatch.setenv("HOME", str(exported))
    for name in ("cup.safetensors", "./cup.safetensors", "~/cup.safetensors"):
        assert open_source(name, mini, tmp_path).pictures == exported / "generated"


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_file_outside_a_session_needs_no_base(
    exported: Path, mini: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    file = exported / f"cup.{kind}"
    alone = open_source(str(file), None, None)
    assert alone.size == 64, "what it was made for"
    request = {"width": 64, "height": 64, "steps": 1}
    based = open_source(str(file), mini, None)
    drawn = [one.load().generate(one.request("a cup", **request))[0].tobytes() for one in (alone, based)]
    assert drawn[0] == drawn[1]
    source = open_source(str(file), mini, None)
    assert source.size == 512
    assert source.load().generate(source.request("a cup", width=64, height=64, steps=1))


def refused(file: Path, base: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ModelError) as caught:
        open_source(str(file), base, None).load()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_another_base_model_is_said(exported: Path, kind: str, mini: Path, tmp_path: Path) -> None:
    wide = wider(mini, tmp_path / "wide")
    line = refused(exported / f"cup.{kind}", wide)
    assert line.startswith(f"{exported}/cup.{kind} cannot be loaded as a Stable Diffusion with the sizes of {wide} (")
    assert line.endswith("Name the base model that it was trained from, or export it again.")
    assert "time_emb_proj" in line or "shape" in line


def test_a_base_model_that_is_none_is_said(exported: Path, tmp_path: Path) -> None:
    line = refused(exported / "cup.ckpt", tmp_path / "nowhere")
    assert line.startswith(f"{tmp_path}/nowhere: there is no such file or folder. Give a Stable Diffusion 1.x")
    assert "has no model_index.json; it is empty" in refused(exported / "cup.ckpt", tmp_path)


def half(file: Path, data: bytes) -> None:
    file.write_bytes(data[: len(data) // 2])


def empty(file: Path, data: bytes) -> None:
    file.write_bytes(b"")


def words(file: Path, data: bytes) -> None:
    file.write_bytes(b"<!DOCTYPE html> you have to log in to download this " * 40)


def noise(file: Path, data: bytes) -> None:
    file.write_bytes(os.urandom(5000))


@pytest.mark.parametrize("spoil", [half, empty, words, noise])
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_damaged_file_is_said(
    exported: Path, mini: Path, tmp_path: Path, kind: str, spoil: Callable[[Path, bytes], None]
) -> None:
    file = tmp_path / f"bad.{kind}"
    spoil(file, (exported / f"cup.{kind}").read_bytes())
    line = refused(file, mini)
    assert line.startswith(f"{file} cannot be loaded as a Stable Diffusion with the sizes of")


@pytest.mark.parametrize("without", ["cond_stage_model.", "first_stage_model.", "model.diffusion_model.", "nothing"])
def test_a_file_that_lacks_a_part_is_said(exported: Path, mini: Path, tmp_path: Path, without: str) -> None:
    weights = load_file(exported / "cup.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(without)}
    assert (len(kept) < len(weights)) == (without != "nothing")
    file = tmp_path / "lacks.safetensors"
    save_file(kept, file)
    if without == "nothing":
        assert open_source(str(file), mini, None).load()
    else:
        assert "cannot be loaded as a Stable Diffusion" in refused(file, mini)


def test_a_lora_or_other_file_is_said(mini: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(3)}, file)
    assert "cannot be loaded as a Stable Diffusion" in refused(file, mini)


class Evil:
    """What a poisoned .ckpt holds: unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_poisoned_ckpt_does_nothing(mini: Path, tmp_path: Path) -> None:
    file, mark = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"weight": Evil(mark)}}, file)
    refused(file, mini)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the poison works where it is let in"


def test_a_file_that_is_not_there_is_said(mini: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "cup.ckpt", mini)
    assert line == f"{tmp_path}/cup.ckpt: there is no such file. Create it with: fastdb export SESSION"


def test_a_session_that_is_not_there_is_said(session: Session) -> None:
    with pytest.raises(SessionNotFound, match="Did you mean cup"):
        open_source("cpu", None, None)
    with pytest.raises(SessionError, match="there is no session of this name"):
        open_source("../cup", None, None)


def written(session: Session, base: str) -> None:
    """Write where its base model lies into a session by hand."""
    record = (session.path / "session.yaml").read_text("utf-8")
    (session.path / "session.yaml").write_text(record.replace(session.record.base_model.folder, base), "utf-8")


def test_a_base_model_that_moved_is_said_with_what_to_do(session: Session, exported: Path, mini: Path) -> None:
    shutil.copy(exported / "cup.ckpt", session.path / "cup.ckpt")
    written(session, "/gone")
    said = (
        "/gone: there is no such file or folder. Put the base model of cup back there, or write its new place into "
        f"{session.path}/session.yaml."
    )
    for source in ("cup", str(session.path / "cup.ckpt")):
        with pytest.raises(ModelError) as caught:
            open_source(source, None, None).load()
        assert str(caught.value) == said
    with pytest.raises(ModelError, match="Put the base model of cup back there"):
        results.export("cup")
    assert drawn(open_source(str(session.path / "cup.ckpt"), mini, None))
    (session.path / "session.yaml").write_text(
        (session.path / "session.yaml").read_text("utf-8").replace("/gone", str(mini)), "utf-8"
    )
    assert drawn(open_source("cup", None, None))


def test_the_base_model_that_ships_is_found_by_its_name(session: Session) -> None:
    before = drawn(open_source(session, None, None))
    written(session, "mini")
    moved = Session.open("cup")
    assert moved.record.base_model.folder == "mini"
    assert drawn(open_source(moved, None, None)) == before
    (file,) = results.export(moved, formats=["ckpt"], precision="fp32")
    assert drawn(open_source(str(file), None, None)) == before


def test_loading_says_nothing(exported: Path, mini: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """diffusers would show a bar of five parts, and remarks about casting that nobody can act on."""
    from diffusers.utils import logging as remarks

    remarks.enable_progress_bar()
    remarks.set_verbosity_warning()
    open_source(str(exported / "cup.safetensors"), mini, None).load()
    sys.stderr.flush()
    assert capfd.readouterr() == ("", "")
    assert remarks.is_progress_bar_enabled()
    assert remarks.get_verbosity() == remarks.WARNING
