"""Settings, words and names that are probably not what a person wants are told when a session is made."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

pytest.importorskip("torch")

from typer.testing import CliRunner

from fastdb import interactive
from fastdb.cli import app
from fastdb.commands import sessions
from fastdb.errors import ConfigError, ImageError, StorageError
from fastdb.runtime import drive, paths


@pytest.fixture
def t4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that reports a T4."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]


def test_nothing_is_told_of_a_usual_session(photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("cup", "mini", photos[:1], token="sks", class_word="cup")
    output = capsys.readouterr().out
    assert "warning:" not in output
    assert "1 prompt to train: 'a photo of sks cup'" in output


def test_a_resolution_far_from_the_base_model_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("cup", "mini", token="sks", class_word="cup", settings={"resolution": 512})
    assert told(capsys) == ["warning: resolution 512 is far from the 64 px that the base model was made for"]


def test_fp16_without_a_gpu_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    interactive.new("cup", "mini", token="sks", class_word="cup", settings={"precision": "fp16"})
    (line,) = told(capsys)
    assert "fp16 needs a GPU" in line


def test_bf16_on_a_t4_is_told(t4: None, capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("cup", "mini", token="sks", class_word="cup", settings={"precision": "bf16"})
    (line,) = told(capsys)
    assert "Tesla T4 has no bf16" in line


def test_the_class_word_in_the_token_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("dog", "mini", token="dog", class_word="dog")
    (line,) = told(capsys)
    assert "a photo of dog dog" in line


def test_a_missing_token_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    interactive.new("dog", "mini", class_word="dog")
    (line,) = told(capsys)
    assert "no token" in line
    assert "'a photo of dog'" in line


@pytest.mark.parametrize(
    "name",
    ["IMG_2041", "WhatsApp Image 2024-01-01 at 10.11.12 (3)", "user01946 (1)", "DSC00012", "PXL_20240101", "20240101"],
)
def test_names_that_cameras_give_are_told(
    name: str, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / f"{name}.png"
    photo.write_bytes(photos[0].read_bytes())
    interactive.new("dog", "mini", [photo])
    output = capsys.readouterr().out
    if name.isdigit():
        assert f"file names such as '{name}' give no prompt" in output
        remedy = output.partition("fastdb change ")[2].splitlines()[0]
        assert CliRunner().invoke(app, ["change", *remedy.split()]).exit_code == 0
        assert sessions.show("dog").prompts == ("a photo of sks dog",)
        return
    assert "1 of 1 prompts are names that cameras give" in output
    assert "1 prompt to train: " in output


def test_names_that_people_give_are_prompts(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "sks cup (1).png"
    photo.write_bytes(photos[0].read_bytes())
    interactive.new("cup", "mini", [photo])
    assert "1 prompt to train: 'sks cup'" in capsys.readouterr().out


def test_a_base_model_has_to_be_chosen() -> None:
    with pytest.raises(ConfigError, match=r"sd15 \(Stable Diffusion 1\.5\).*mini"):
        sessions.new("cup", "")
    assert not paths.sessions_root().exists()


def test_without_a_usable_photo_no_session_is_left(tmp_path: Path, photos: list[Path]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    with pytest.raises(ImageError, match="no session was created"):
        sessions.new("cup", "mini", [broken])
    assert not (paths.sessions_root() / "cup").exists()
    with pytest.raises(ImageError, match="1 of 2 photos"):
        sessions.new("cup", "mini", [broken, photos[0]])
    assert (paths.sessions_root() / "cup").is_dir()


def test_on_colab_without_drive_no_session_is_made_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDB_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(drive, "COLAB", tmp_path / "hostname")
    monkeypatch.setattr(paths, "DRIVES", (tmp_path / "MyDrive",))
    drive.COLAB.touch()
    with pytest.raises(StorageError, match="Google Drive is not mounted"):
        interactive.open_or_new("cup", "mini")
    assert not paths.sessions_root().exists()
    # Both remedies work.
    assert sessions.new("here", "mini", root=paths.sessions_root()).path.is_dir()
    paths.DRIVES[0].mkdir()
    assert sessions.new("cup", "mini").path.is_relative_to(paths.DRIVES[0])


def test_the_volumes_of_other_hosts_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDB_ROOT")
    monkeypatch.setattr(paths, "DRIVES", ())
    monkeypatch.setattr(paths, "VOLUMES", tuple((name, tmp_path / path.name) for name, path in paths.VOLUMES))
    for variable, folder in (("KAGGLE_KERNEL_RUN_TYPE", "working"), ("RUNPOD_POD_ID", "workspace")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, "1")
            assert not paths.sessions_root().is_relative_to(tmp_path)
            (tmp_path / folder).mkdir()
            assert paths.sessions_root() == tmp_path / folder / "Fast-Dreambooth" / "Sessions"


def test_show_lists_the_prompts_to_train(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, photo in zip(("sks cup (1)", "sks cup (2)", "IMG_7"), photos, strict=True):
        (tmp_path / f"{name}.png").write_bytes(photo.read_bytes())
    interactive.new("cup", "mini", sorted(tmp_path.glob("*.png")))
    capsys.readouterr()
    interactive.show("cup")
    assert re.search(r"^prompts +IMG; sks cup$", capsys.readouterr().out, re.MULTILINE)
