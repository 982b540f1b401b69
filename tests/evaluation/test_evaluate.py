"""A whole evaluation of a session that was really trained, by tiny CLIP and DINO models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from filelock import FileLock
from PIL import Image

from fastdb import interactive, notebook
from fastdb.checkpoints.retention import retention
from fastdb.commands import results
from fastdb.errors import (
    ConfigError,
    FastDBError,
    ImageError,
    ModelError,
    SessionBusy,
    TrainingError,
)
from fastdb.evaluation.report import Report
from fastdb.images.photos import read_photo
from fastdb.inference.engine import Engine
from fastdb.sessions.session import Session
from fastdb.training import process

PROMPTS = ("a photo of sks cup", "a photo of sks cup on a beach", "a photo of cup", "a tree")
ASKED: dict[str, Any] = {"seeds": 2, "prompts": PROMPTS, "steps": 3}


@pytest.fixture(scope="module")
def done(kept: Path, clip: Path, dino: Path, common: Path) -> Path:
    """A session evaluated once for all workers, with what it said in `said`; tests only copy it."""
    root = common / "evaluation_done"
    with FileLock(common / "evaluation_done.lock"):
        if not (root / "cup" / "said").exists():
            shutil.copytree(kept, root / "cup")
            command = [sys.executable, "-m", "fastdb", "evaluate", "cup", "--root", str(root), "--seeds", "2"]
            command += ["--steps", "3", "--clip", str(clip), "--dino", str(dino)]
            for prompt in PROMPTS:
                command += ["--prompt", prompt]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended
            (root / "cup" / "said").write_text(ended.stdout)
            (root / "cup" / "errors").write_text(ended.stderr)
    return root / "cup"


@pytest.fixture
def evaluated(done: Path, sessions_folder: Path) -> Session:
    """A copy of it."""
    return Session.open(shutil.copytree(done, sessions_folder / "cup"))


def test_the_checkpoint_it_names_is_the_one_that_is_kept(evaluated: Session) -> None:
    picked = told(evaluated)["picked"]["step"]
    assert picked > 0
    assert retention(evaluated).best == picked


def told(session: Session, name: str = "evaluation.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session.path / "evaluation" / name).read_text())
    return found


def pictures(session: Session) -> dict[str, bytes]:
    folder = session.path / "evaluation" / "pictures"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def written(session: Session) -> dict[str, int]:
    folder = session.path / "evaluation" / "pictures"
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


@pytest.fixture
def again(clip: Path, dino: Path) -> Callable[..., Report]:
    """Evaluates a session as `done` was, but for what is changed."""

    def evaluate(session: Session, **changes: Any) -> Report:
        return results.evaluate(session, **{**ASKED, "clip": str(clip), "dino": str(dino), **changes})

    return evaluate


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be drawn."""

    def load(*_: Any, **__: Any) -> Engine:
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr(Engine, "from_base", load)
    monkeypatch.setattr(Engine, "from_export", load)


def test_everything_is_left_in_the_session(evaluated: Session) -> None:
    folder = evaluated.path / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "evaluation.json", "grid.png", "pictures"]
    assert len(pictures(evaluated)) == 5 * 8
    for name in ("curves.png", "grid.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    found = told(evaluated)
    assert [one["checkpoint"] for one in found["checkpoints"]] == [f"step {step}" for step in (0, 4, 8, 12, 16)]
    assert [one["step"] for one in found["checkpoints"]] == [0, 4, 8, 12, 16]
    assert found["settings"] == {
        "steps": 3,
        "guidance": 3.0,
        "sampler": "DPM++ 2M",
        "width": 64,
        "height": 64,
        "precision": "fp32",
    }
    assert [group["prompts"] for group in found["protocol"]["groups"]] == [[prompt] for prompt in PROMPTS]
    assert [group["name"] for group in found["protocol"]["groups"]] == ["subject", "context", "class", "others"]
    assert set(found["figures"]) == {
        "dino", "clip_i", "clip_t", "class_clip_i", "leak", "others", "copies", "diversity"
    }  # fmt: skip
    for one in found["checkpoints"]:
        assert set(one["figures"]) == set(found["figures"])
        assert [line["seed"] for line in one["pictures"]] == [0, 1] * 4
        assert all((folder / line["file"]).is_file() for line in one["pictures"])
        assert all(set(line) > {"clip_i", "clip_t", "dino", "nearest"} for line in one["pictures"])
    assert found["checkpoints"][0]["figures"]["leak"]["mean"] == 0


def test_figures_in_the_file_are_the_means_of_its_pictures(evaluated: Session) -> None:
    for one in told(evaluated)["checkpoints"]:
        alike = [line["clip_i"] for line in one["pictures"] if line["group"] in ("subject", "context")]
        assert one["figures"]["clip_i"]["mean"] == pytest.approx(sum(alike) / 4, abs=1e-5)
        assert one["figures"]["clip_i"]["count"] == 4


def test_the_table_and_the_choice_are_said(evaluated: Session) -> None:
    said, found = (evaluated.path / "said").read_text(), told(evaluated)
    last = found["checkpoints"][-1]["figures"]["dino"]
    row = next(line for line in said.splitlines() if line.startswith("step 16"))
    assert f"{last['mean']:.3f} ±{last['error']:.3f}" in row
    picked = found["picked"]
    assert picked["checkpoint"] in {"step 4", "step 8", "step 12", "step 16"}
    assert f"use {picked['checkpoint']}: {picked['reason']}" in said.splitlines()
    assert ("warning: overfit: " in said) == bool(picked["overfit"])
    for name in ("grid.png", "curves.png", "evaluation.json"):
        assert len([line for line in said.splitlines() if line.endswith(f"cup/evaluation/{name}")]) == 1


def test_progress_is_shown_with_its_end_in_sight(evaluated: Session) -> None:
    bars = (evaluated.path / "errors").read_text().replace("\r", "\n").splitlines()
    drawn = [line for line in bars if line.startswith("draw:")]
    assert "40/40" in drawn[-1]
    assert all(not line.strip() or line.startswith(("draw:", "measure:")) for line in bars), bars


def test_checkpoints_differ_and_seeds_do_too(evaluated: Session) -> None:
    made = pictures(evaluated)
    assert len(set(made.values())) == len(made)


def test_a_second_time_nothing_is_drawn(
    evaluated: Session, again: Callable[..., Report], no_engine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before, stamps = told(evaluated), written(evaluated)
    again(evaluated)
    assert "40 of 40 pictures were made before and are used again" in capsys.readouterr().out
    assert told(evaluated) == before
    assert written(evaluated) == stamps


def test_some_checkpoints_alone(evaluated: Session, again: Callable[..., Report], no_engine: None) -> None:
    before = told(evaluated)
    report = again(evaluated, checkpoints=[8, 16])
    assert [one.label for one in report.candidates] == ["step 0", "step 8", "step 16"]
    kept = {one["checkpoint"]: one["figures"] for one in before["checkpoints"]}
    for one in told(evaluated)["checkpoints"]:
        assert one["figures"] == kept[one["checkpoint"]]


@pytest.mark.parametrize("changed", [{"steps": 2}, {"guidance": 2.0}, {"sampler": "DDIM"}])
def test_pictures_of_other_settings_are_not_used(
    evaluated: Session, again: Callable[..., Report], changed: dict[str, Any]
) -> None:
    before = pictures(evaluated)
    again(evaluated, checkpoints=[4], **changed)
    now = pictures(evaluated)
    assert len(now) == 40 + 16
    assert {name: data for name, data in now.items() if name in before} == before


def test_what_was_damaged_or_lost_is_drawn_anew_and_the_same(evaluated: Session, again: Callable[..., Report]) -> None:
    before, figures = pictures(evaluated), told(evaluated)
    folder = evaluated.path / "evaluation" / "pictures"
    lost, cut, foreign = sorted(before)[3], sorted(before)[12], sorted(before)[21]
    (folder / lost).unlink()
    (folder / cut).write_bytes(before[cut][:900])
    Image.new("RGB", (64, 64)).save(folder / foreign)
    stamps = written(evaluated)
    again(evaluated)
    assert pictures(evaluated) == before
    now = written(evaluated)
    assert {name for name in now if now[name] != stamps.get(name)} == {lost, cut, foreign}
    assert told(evaluated) == figures


def test_weights_that_changed_are_drawn_anew(evaluated: Session, again: Callable[..., Report]) -> None:
    """A checkpoint of the same name that holds other weights, as after training anew."""
    from fastdb.storage.manifest import write_manifest

    four, eight = (evaluated.checkpoints / f"unet-00000{step}" for step in (4, 8))
    shutil.copy(eight / "unet.packed", four / "unet.packed")
    write_manifest(four)
    before = told(evaluated)
    again(evaluated, checkpoints=[4, 8])
    assert len(pictures(evaluated)) == 48
    _, first, second = told(evaluated)["checkpoints"]
    assert first["figures"] == second["figures"] == before["checkpoints"][2]["figures"]
    assert first["weights"] == second["weights"]


def test_a_killed_evaluation_goes_on_to_the_same_end(
    session: Session, done: Path, again: Callable[..., Report], clip: Path, dino: Path
) -> None:
    """Killed for real in the midst of drawing; what lies there is used, and the end is the same as without."""
    command = [sys.executable, "-m", "fastdb", "evaluate", "cup", "--seeds", "2", "--steps", "3"]
    command += [
        "--clip",
        str(clip),
        "--dino",
        str(dino),
        *(part for prompt in PROMPTS for part in ("--prompt", prompt)),
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(pictures(session)) < 10:
            assert running.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    stamps = written(session)
    assert 10 <= len(stamps) < 40
    assert not (session.path / "evaluation" / "evaluation.json").exists()
    again(session)
    whole = Session.open(done)
    assert pictures(session) == pictures(whole)
    assert told(session) == told(whole)
    assert {name: stamp for name, stamp in written(session).items() if name in stamps} == stamps


def test_the_exported_file_gives_the_same_figures(
    evaluated: Session, again: Callable[..., Report], capsys: pytest.CaptureFixture[str]
) -> None:
    before, last = pictures(evaluated), told(evaluated)["checkpoints"][-1]
    file = interactive.export(evaluated, formats=["safetensors"], precision="fp32")[0]
    capsys.readouterr()
    report = again(evaluated, file=file)
    said = capsys.readouterr().out
    assert [one.label for one in report.candidates] == ["step 0", "cup.safetensors"]
    assert report.candidates[1].step == 16
    start, now = told(evaluated, "cup.safetensors.json")["checkpoints"]
    assert start == told(evaluated)["checkpoints"][0]
    assert now["figures"] == last["figures"]
    assert "cup.safetensors and step 16 were evaluated alike: their figures differ by 0.000 at most" in said
    assert (evaluated.path / "evaluation" / "cup.safetensors-grid.png").is_file()
    made = {name: data for name, data in pictures(evaluated).items() if name not in before}
    assert len(made) == 8
    half = interactive.export(evaluated, formats=["safetensors"], precision="fp16")[0]
    again(evaluated, file=half)
    for name, value in told(evaluated, "cup.safetensors.json")["checkpoints"][1]["figures"].items():
        assert value["mean"] == pytest.approx(last["figures"][name]["mean"], abs=0.02), name


def test_an_export_is_not_compared_with_what_was_asked_otherwise(
    evaluated: Session, again: Callable[..., Report], capsys: pytest.CaptureFixture[str]
) -> None:
    file = interactive.export(evaluated, formats=["safetensors"])[0]
    again(evaluated, file=file, steps=2)
    assert "not compared with its checkpoint: that was not evaluated with the same" in capsys.readouterr().out
    (evaluated.path / "evaluation" / "evaluation.json").unlink()
    again(evaluated, file=file, steps=2)
    assert "not compared with the checkpoints: no evaluation of them can be read" in capsys.readouterr().out


def test_the_notebook_shows_the_grid_over_the_curves(
    evaluated: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    again: Callable[..., Report],
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(results, "evaluate", lambda session, **wanted: asked.append(wanted))
    assert notebook.compare(evaluated, 0) is None
    assert "left out" in capsys.readouterr().out
    assert asked == []
    picture = notebook.compare(evaluated, 2)
    assert asked == [{"seeds": 2}]
    grid, curves = (read_photo(evaluated.path / "evaluation" / name) for name in ("grid.png", "curves.png"))
    assert picture is not None
    assert picture.height == grid.height + curves.height
    assert picture.crop((0, 0, *grid.size)).tobytes() == grid.tobytes()
    assert picture.crop((0, grid.height, curves.width, picture.height)).tobytes() == curves.tobytes()


def test_a_damaged_checkpoint_is_skipped_with_a_note(
    evaluated: Session, again: Callable[..., Report], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = evaluated.checkpoints / "unet-000012" / "unet.packed"
    weights.write_bytes(weights.read_bytes()[:-1])
    report = again(evaluated)
    assert [one.label for one in report.candidates] == ["step 0", "step 4", "step 8", "step 16"]
    said = capsys.readouterr().out
    assert "warning: Skipping checkpoint unet-000012: unet.packed has" in said


def refusal(call: Callable[[], object], kind: type[FastDBError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_session_without_checkpoints_is_refused(
    session: Session, again: Callable[..., Report], no_engine: None
) -> None:
    shutil.rmtree(session.checkpoints / "text_encoder-000004")
    line = refusal(lambda: again(session), TrainingError)
    assert line.startswith("cup: the text encoder of step 4, with which the UNet was trained, is missing")
    shutil.rmtree(session.checkpoints)
    line = refusal(lambda: again(session), TrainingError)
    assert line == ("cup: there is no valid checkpoint of the UNet stage. Train it first: fastdb train cup")
    assert not (session.path / "evaluation").exists()


def test_steps_that_are_not_there_are_refused(session: Session, again: Callable[..., Report]) -> None:
    line = refusal(lambda: again(session, checkpoints=[4, 15, 99]), ConfigError)
    assert line == (
        "checkpoints: cup has no checkpoint of the UNet stage at step 15, 99. Existing steps: 4, 8, 12, 16."
    )


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"measure": "eye"}, ConfigError, "'eye': there is no such measure"),
        ({"sampler": "DDMI"}, ConfigError, "Did you mean DDIM"),
        ({"steps": 0}, ConfigError, "steps: 0 is not between"),
        ({"guidance": -1.0}, ConfigError, "guidance: -1.0 is not between"),
        ({"seeds": 0}, ConfigError, "seeds: 0 is not between"),
        ({"prompts": [" "]}, ConfigError, "a prompt: is empty"),
        ({"clip": "/nowhere"}, ModelError, "/nowhere: there is no such folder. Give --clip"),
        ({"dino": "/nowhere"}, ModelError, "/nowhere: there is no such folder. Give --dino"),
        ({"file": "/nowhere/cup.safetensors"}, ModelError, "there is no such file"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_drawn(
    session: Session,
    again: Callable[..., Report],
    no_engine: None,
    changed: dict[str, Any],
    kind: type[FastDBError],
    said: str,
) -> None:
    assert said in refusal(lambda: again(session, **changed), kind)
    assert not (session.path / "evaluation").exists()


def test_a_session_without_instance_images_is_refused(session: Session, again: Callable[..., Report]) -> None:
    for path in session.instance_images.glob("*.png"):
        path.unlink()
    assert "there are no instance images to compare with" in refusal(lambda: again(session), ImageError)


def test_another_base_model_is_refused(session: Session, again: Callable[..., Report]) -> None:
    record = session.path / "session.yaml"
    record.write_text(record.read_text().replace(session.record.base_model.fingerprint, "a" * 64))
    assert "this base model has other weights than the session" in refusal(lambda: again(session), TrainingError)


def test_a_session_that_is_being_trained_is_refused(session: Session, again: Callable[..., Report]) -> None:
    shutil.rmtree(session.checkpoints / "unet-000016")
    running = process.start(session)
    try:
        line = refusal(lambda: again(session), SessionBusy)
    finally:
        running.stop()
        list(running.follow())
        running.reap()
    assert line == "cup: is being trained. Evaluate it when that is over, or stop it."


def test_want_of_memory_is_said(
    session: Session, again: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Engine, "generate_together", full)
    line = refusal(lambda: again(session), TrainingError)
    assert line.startswith("evaluation: the GPU's memory is too small for it (CUDA out of memory.")
