"""Functions that notebook cells call."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

import fastdb
from fastdb import notebook
from fastdb.downloads import small_models
from fastdb.errors import FastDBError, ImageError, ModelError, SessionBusy, SessionError, StorageError
from fastdb.notebook import picture_cells
from fastdb.notebook.set_up import begin
from fastdb.sessions.session import Session
from fastdb.training import process


@pytest.fixture
def session(home):
    settings = {"resolution": 64, "prior.class_images": 0, "token.try": "off"}
    return fastdb.open_or_new("mug", "mini", token="sks", class_word="mug", settings=settings)


def stems(session):
    return sorted(path.stem for path in session.instance_images.glob("*.png"))


def test_open_or_new_makes_then_opens(session, capsys):
    assert session.record.subject.class_word == "mug"
    capsys.readouterr()
    Session.open(session).with_run_begun("text_encoder step 0")
    again = fastdb.open_or_new("mug")
    assert (again.path, again.config.resolution, again.record.subject.token) == (session.path, 64, "sks")
    assert len(again.record.runs) == 1
    said = capsys.readouterr().out
    assert "Opened session mug with its own base model" in said
    assert "sks mug" in said


def test_open_or_new_hides_no_fault(session):
    with pytest.raises(SessionError, match="cannot be the name"):
        fastdb.open_or_new("my mug", "mini")
    with pytest.raises(ModelError, match="there is no such file or folder"):
        fastdb.open_or_new("other", "/nowhere")
    (session.path / "session.yaml").write_text("format: 99", encoding="utf-8")
    with pytest.raises(SessionError, match="format 99"):
        fastdb.open_or_new("mug", "mini")


def test_a_session_opened_long_ago_is_read_again(session, photos):
    """The cell's `session` is older than what the trainer wrote: its history was lost, and half of its weights
    were left out of the pictures, because the old settings said that the first stage was not over."""
    notebook.add_images(session, str(photos))
    before, few = session.config.unet.steps, {"text_encoder.steps": 1, "unet.steps": 1}
    assert fastdb.train(session, settings=few) == "finished"
    assert session.config.unet.steps == before > 1, "the object in the cell does not change"
    assert fastdb.train(session, settings={**few, "samples.every_steps": 5}) == "finished"
    assert len(fastdb.show(session).record.runs) == 1
    assert Session.open(session).config.samples.every_steps == 5


def test_photos_come_in_once(session, photos, capsys):
    sheet = notebook.add_images(session, str(photos))
    assert sheet.width > 3 * 192
    assert stems(session) == ["astronaut", "cat", "coffee"]
    assert notebook.add_images(session, str(photos)).size == sheet.size
    assert stems(session) == ["astronaut", "cat", "coffee"]
    capsys.readouterr()
    assert notebook.add_images(session).size == sheet.size
    assert "mug has images already" in capsys.readouterr().out


def test_without_photos_the_cell_says_what_to_do(session):
    with pytest.raises(ImageError, match=r"^mug: no photos were given\. Upload some above"):
        notebook.add_images(session)


def test_a_browser_uploads_and_the_same_photos_are_not_doubled(session, photos, colab, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    colab.chosen = {path.name: path.read_bytes() for path in photos.iterdir()}
    assert notebook.add_images(session) is not None
    assert stems(session) == ["astronaut", "cat", "coffee"]
    assert notebook.add_images(session) is not None
    assert colab.asked == ["upload"], "a session with images asks for none, so that running all cells goes on"
    colab.chosen["horse.png"] = _red()
    notebook.add_images(session, upload_more=True)
    assert stems(session) == ["astronaut", "cat", "coffee", "horse"]
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.glob("*.png")), "nothing is left where the notebook runs"


def test_an_upload_that_is_cancelled_is_told(session, colab):
    with pytest.raises(ImageError, match="no photos were given"):
        notebook.add_images(session)
    assert colab.asked == ["upload"]


def test_images_stay_as_they_are_while_they_are_trained_on(session, photos, monkeypatch, capsys):
    notebook.add_images(session, str(photos))
    monkeypatch.setattr(process, "find", lambda session: object())
    shutil.copy(photos / "cat.png", photos / "lion.png")
    try:
        assert notebook.add_images(session, str(photos)) is not None
    finally:
        (photos / "lion.png").unlink()
    assert stems(session) == ["astronaut", "cat", "coffee"]
    assert "is being trained; no photos were added" in capsys.readouterr().out


def test_samples_stand_in_the_order_of_their_steps(session, capsys, monkeypatch):
    assert notebook.samples(session) is None
    assert "mug has no samples" in capsys.readouterr().out
    for name in ("unet-000900-1", "unet-1000000-1", "unet-000950-1", "text_encoder-000005-1", "unet-000900-2"):
        Image.new("RGB", (64, 64)).save(session.samples / f"{name}.png")
    (session.samples / "someone's own.png").write_bytes(_red())
    shown = {}
    monkeypatch.setattr(picture_cells, "_sheet", shown.update)
    notebook.samples(session)
    assert {label: [cell.caption for cell in cells] for label, cells in shown.items()} == {
        "text encoder": ["step 5"],
        "unet": ["step 900", "step 900", "step 950", "step 1000000"],
    }


@pytest.mark.parametrize("count", [1, 2, 4, 6, 7, 12])
def test_pictures_fit_a_notebook(tmp_path, count):
    paths = [tmp_path / f"{number:04d}-seed{number}.png" for number in range(count)]
    for path in paths:
        Image.new("RGB", (512, 512), "red").save(path)
    sheet = notebook.pictures(paths)
    assert sheet.width <= 1120
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum()
    each = min(512, 960 // min(count, 6))
    assert red == pytest.approx(count * each**2, rel=0.1)


def test_the_gpu_is_named_or_missed(monkeypatch, colab, capsys, tmp_path):
    monkeypatch.setattr(small_models, "find", lambda name: tmp_path)

    def answering(code, text):
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
        answer = subprocess.CompletedProcess([], code, stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
        begin()
        return capsys.readouterr().out

    assert "Tesla T4, 15.0 GiB\n" in answering(0, "Tesla T4, 15360, 7.5\n")
    said = answering(9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    assert "no NVIDIA GPU found" in said
    assert "Change runtime type" in said
    monkeypatch.setattr(shutil, "which", lambda name: None)
    begin()
    assert "no NVIDIA GPU found" in capsys.readouterr().out


def test_colab_downloads_the_models_that_the_wheel_lacks_or_says_why_not(colab, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    asked = []

    def fetch(name, timeout):
        asked.append(name)
        if name == small_models.YUNET:
            raise ModelError(f"{name} could not be downloaded (refused)", fix="Try again later.")
        return tmp_path / name

    monkeypatch.setattr(small_models, "fetch", fetch)
    begin()
    said = capsys.readouterr().out
    assert asked == [small_models.YUNET, small_models.CLIP_MERGES]
    assert f"Continuing without {small_models.YUNET}: {small_models.YUNET} could not be downloaded (refused)" in said
    assert f"Downloaded {tmp_path / small_models.CLIP_MERGES}" in said
    monkeypatch.setattr(small_models, "find", lambda name: tmp_path)
    begin()
    assert len(asked) == 2


def test_finishing_outside_colab_says_where_everything_is(session, capsys):
    (session.path / "mug.ckpt").touch()
    for act in ("nothing", "disconnect", "download the ckpt"):
        capsys.readouterr()
        notebook.finish(session, act)
        assert str(session.path) in capsys.readouterr().out


def test_downloading_needs_an_export(session, colab):
    with pytest.raises(ModelError, match=r"mug\.safetensors does not exist yet\. Run the Export cell first"):
        notebook.finish(session, "download the safetensors")
    (session.path / "mug.safetensors").touch()
    notebook.finish(session, "download the safetensors")
    assert colab.asked == ["download mug.safetensors"]


def test_the_machine_goes_only_when_everything_is_safe(session, colab, monkeypatch):
    with pytest.raises(StorageError, match="is on this machine only"):
        notebook.finish(session, "disconnect")
    drive = colab.mountpoint / "MyDrive"
    drive.mkdir(parents=True)
    with pytest.raises(StorageError, match="is on this machine only"):
        notebook.finish(session, "disconnect")  # Drive is mounted, but the session is not on it
    session = Session.open(shutil.copytree(session.path, drive / "mug"))
    with monkeypatch.context() as busy:
        busy.setattr(process, "find", lambda session: object())
        with pytest.raises(SessionBusy):
            notebook.finish(session, "disconnect")
    colab.fails_with = ValueError("flush_and_unmount failed")
    with pytest.raises(StorageError, match="Keep this machine"):
        notebook.finish(session, "disconnect")
    assert "unassign" not in colab.asked
    colab.fails_with = None
    colab.asked.clear()
    notebook.finish(session, "disconnect")
    assert colab.asked == ["flush", "unassign"]


def test_the_tick_without_drive_is_taken_back(colab, home, monkeypatch, capsys):
    monkeypatch.delenv("FASTDB_ROOT")
    monkeypatch.setenv("HOME", str(home))
    notebook.open_drive(True)
    assert "sessions are deleted with this machine" in capsys.readouterr().out
    assert fastdb.open_or_new("mug", "mini").path.is_relative_to(home)
    notebook.open_drive(False)
    assert fastdb.open_or_new("dog", "mini").path.is_relative_to(colab.mountpoint)


def test_a_session_with_images_but_no_sheet_asks_for_none(session, photos, capsys):
    notebook.add_images(session, str(photos))
    (session.path / "instance_images.png").unlink()
    assert notebook.add_images(session) is None
    assert "mug has images already" in capsys.readouterr().out


def test_an_error_renders_as_its_line():
    assert FastDBError("is lost", subject="x", fix="Find it.")._render_traceback_() == ["error: x is lost. Find it."]


def _red() -> bytes:
    """A red picture as PNG."""
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")
    return data.getvalue()
