"""Whole evaluations of a trained session by tiny CLIP and DINO models."""

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

from fastdb import console, interactive, notebook
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
from fastdb.evaluation.prompts import custom_protocol
from fastdb.evaluation.report import Evaluation
from fastdb.images.photos import read_photo
from fastdb.inference.engine import Engine
from fastdb.measures.words import words_of
from fastdb.sessions.session import Session
from fastdb.training import process

PROMPTS = ("a photo of sks cup", "a photo of sks cup on a beach", "a photo of cup", "a tree")
ASKED: dict[str, Any] = {"seeds": 2, "prompts": PROMPTS, "steps": 3}


@pytest.fixture(scope="module")
def done(kept: Path, clip: Path, dino: Path, common: Path) -> Path:
    """A session evaluated once for all workers, its output in `output`; tests only copy it."""
    root = common / "evaluation_done"
    with FileLock(common / "evaluation_done.lock"):
        if not (root / "cup" / "output").exists():
            shutil.copytree(kept, root / "cup")
            command = [sys.executable, "-m", "fastdb", "evaluate", "cup", "--root", str(root), "--seeds", "2"]
            command += ["--steps", "3", "--clip", str(clip), "--dino", str(dino)]
            for prompt in PROMPTS:
                command += ["--prompt", prompt]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended
            (root / "cup" / "output").write_text(ended.stdout)
            (root / "cup" / "errors").write_text(ended.stderr)
    return root / "cup"


@pytest.fixture
def evaluated(done: Path, sessions_folder: Path) -> Session:
    """A copy of it."""
    return Session.open(shutil.copytree(done, sessions_folder / "cup"))


def test_the_picked_checkpoint_is_kept_by_retention(evaluated: Session) -> None:
    picked = saved(evaluated)["picked"]["step"]
    assert picked > 0
    assert retention(evaluated).best == picked


def saved(session: Session, name: str = "evaluation.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session.path / "evaluation" / name).read_text())
    return found


def pictures(session: Session) -> dict[str, bytes]:
    folder = session.path / "evaluation" / "pictures"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def written(session: Session) -> dict[str, int]:
    folder = session.path / "evaluation" / "pictures"
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


@pytest.fixture
def again(clip: Path, dino: Path) -> Callable[..., Evaluation]:
    """Evaluates a session like `done`, with changed options."""

    def evaluate(session: Session, **changes: Any) -> Evaluation:
        return interactive.evaluate(session, **{**ASKED, "clip": str(clip), "dino": str(dino), **changes})

    return evaluate


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an engine is loaded."""

    def load(*_: Any, **__: Any) -> Engine:
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr(Engine, "from_base", load)
    monkeypatch.setattr(Engine, "from_export", load)


def test_results_are_written_into_the_session(evaluated: Session) -> None:
    folder = evaluated.path / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "evaluation.json", "grid.png", "pictures"]
    assert len(pictures(evaluated)) == 5 * 8
    for name in ("curves.png", "grid.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    found = saved(evaluated)
    assert [candidate["checkpoint"] for candidate in found["checkpoints"]] == [
        f"step {step}" for step in (0, 4, 8, 12, 16)
    ]
    assert [candidate["step"] for candidate in found["checkpoints"]] == [0, 4, 8, 12, 16]
    assert found["settings"] == {
        "steps": 3,
        "guidance": 2.0,
        "sampler": "DPM++ 2M",
        "width": 64,
        "height": 64,
        "precision": "fp32",
    }
    assert [group["prompts"] for group in found["protocol"]["groups"]] == [[prompt] for prompt in PROMPTS]
    assert [group["name"] for group in found["protocol"]["groups"]] == ["subject", "context", "class", "others"]
    assert set(found["figures"]) == {
        "dino", "clip_i", "clip_t", "gallery_base", "photos_told", "class_clip_i", "leak", "others", "drift", "copies",
        "diversity",
    }  # fmt: skip
    shots = custom_protocol(PROMPTS, words_of(evaluated), 2).shots()
    seeds = [(shot.prompt, shot.seed) for shot in shots]
    for candidate in found["checkpoints"]:
        left_out = {"photos_told"} if candidate["step"] else {"drift"}
        assert set(candidate["figures"]) == set(found["figures"]) - left_out
        assert [(line["prompt"], line["seed"]) for line in candidate["pictures"]] == seeds
        assert all((folder / line["file"]).is_file() for line in candidate["pictures"])
        assert all(set(line) > {"clip_i", "clip_t", "dino", "nearest"} for line in candidate["pictures"])
    assert found["checkpoints"][0]["figures"]["leak"]["mean"] == 0


def test_figures_in_the_file_are_the_means_of_its_pictures(evaluated: Session) -> None:
    for candidate in saved(evaluated)["checkpoints"]:
        alike = [line["clip_i"] for line in candidate["pictures"] if line["group"] in ("subject", "context")]
        assert candidate["figures"]["clip_i"]["mean"] == pytest.approx(sum(alike) / 4, abs=1e-5)
        assert candidate["figures"]["clip_i"]["count"] == 4


def test_the_tables_and_the_choice_are_printed(evaluated: Session) -> None:
    output, found = (evaluated.path / "output").read_text(), saved(evaluated)
    last = found["checkpoints"][-1]["figures"]["dino"]
    row = next(line for line in output.splitlines() if line.startswith("step 16"))
    assert f"{last['mean']:.3f} [{last['low']:.2f}, {last['high']:.2f}]" in row
    assert "±" not in output
    picked = found["picked"]
    assert picked["checkpoint"] in {"step 4", "step 8", "step 12", "step 16"}
    assert f"Use {picked['checkpoint']}: {picked['reason']}" in output.splitlines()
    assert ("Overfitting" in output) == bool(picked["overfit"])
    for name in ("grid.png", "curves.png", "evaluation.json"):
        assert len([line for line in output.splitlines() if line.endswith(f"cup/evaluation/{name}")]) == 1


def test_progress_bars_have_a_total(evaluated: Session) -> None:
    bars = (evaluated.path / "errors").read_text().replace("\r", "\n").splitlines()
    drawn = [line for line in bars if line.startswith("draw:")]
    assert "40/40" in drawn[-1]
    assert all(not line.strip() or line.startswith(("draw:", "measure:")) for line in bars), bars


def test_pictures_of_checkpoints_and_seeds_differ(evaluated: Session) -> None:
    made = pictures(evaluated)
    assert len(set(made.values())) == len(made)


def test_a_second_evaluation_draws_nothing(
    evaluated: Session, again: Callable[..., Evaluation], no_engine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before, stamps = saved(evaluated), written(evaluated)
    again(evaluated)
    assert "40 of 40 pictures exist already and are reused" in capsys.readouterr().out
    assert saved(evaluated) == before
    assert written(evaluated) == stamps


def test_only_requested_checkpoints_are_evaluated(
    evaluated: Session, again: Callable[..., Evaluation], no_engine: None
) -> None:
    before = saved(evaluated)
    evaluation = again(evaluated, checkpoints=[8, 16])
    assert [candidate.label for candidate in evaluation.candidates] == ["step 0", "step 8", "step 16"]
    kept = {candidate["checkpoint"]: candidate["figures"] for candidate in before["checkpoints"]}
    for candidate in saved(evaluated)["checkpoints"]:
        assert candidate["figures"] == kept[candidate["checkpoint"]]


@pytest.mark.parametrize("changed", [{"steps": 2}, {"guidance": 3.0}, {"sampler": "DDIM"}])
def test_pictures_of_other_settings_are_not_reused(
    evaluated: Session, again: Callable[..., Evaluation], changed: dict[str, Any]
) -> None:
    before = pictures(evaluated)
    again(evaluated, checkpoints=[4], **changed)
    now = pictures(evaluated)
    assert len(now) == 40 + 16
    assert {name: data for name, data in now.items() if name in before} == before


def test_damaged_or_missing_pictures_are_redrawn_identically(
    evaluated: Session, again: Callable[..., Evaluation]
) -> None:
    before, figures = pictures(evaluated), saved(evaluated)
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
    assert saved(evaluated) == figures


def test_changed_weights_are_drawn_again(evaluated: Session, again: Callable[..., Evaluation]) -> None:
    """A checkpoint of the same name with other weights, as after training again."""
    from fastdb.storage.manifest import write_manifest

    four, eight = (evaluated.checkpoints / f"unet-00000{step}" for step in (4, 8))
    shutil.copy(eight / "unet.packed", four / "unet.packed")
    write_manifest(four)
    before = saved(evaluated)
    again(evaluated, checkpoints=[4, 8])
    assert len(pictures(evaluated)) == 48
    _, first, second = saved(evaluated)["checkpoints"]
    assert first["figures"] == second["figures"] == before["checkpoints"][2]["figures"]
    assert first["weights"] == second["weights"]


def test_a_killed_evaluation_resumes_to_the_same_result(
    session: Session, done: Path, again: Callable[..., Evaluation], clip: Path, dino: Path
) -> None:
    """The process is killed while it draws; its pictures are reused, and the result is the same."""
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
    assert saved(session) == saved(whole)
    assert {name: stamp for name, stamp in written(session).items() if name in stamps} == stamps


def test_the_exported_file_gives_the_same_figures(
    evaluated: Session, again: Callable[..., Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    before, last = pictures(evaluated), saved(evaluated)["checkpoints"][-1]
    file = interactive.export(evaluated, formats=["safetensors"], precision="fp32")[0]
    capsys.readouterr()
    evaluation = again(evaluated, file=file)
    output = capsys.readouterr().out
    assert [candidate.label for candidate in evaluation.candidates] == ["step 0", "cup.safetensors"]
    assert evaluation.candidates[1].step == 16
    start, now = saved(evaluated, "cup.safetensors.json")["checkpoints"]
    assert start == saved(evaluated)["checkpoints"][0]
    assert now["figures"] == last["figures"]
    assert "cup.safetensors was evaluated like its checkpoint; the largest difference of a figure is 0.000" in output
    assert (evaluated.path / "evaluation" / "cup.safetensors-grid.png").is_file()
    made = {name: data for name, data in pictures(evaluated).items() if name not in before}
    assert len(made) == 8
    half = interactive.export(evaluated, formats=["safetensors"], precision="fp16")[0]
    again(evaluated, file=half)
    for name, value in saved(evaluated, "cup.safetensors.json")["checkpoints"][1]["figures"].items():
        assert value["mean"] == pytest.approx(last["figures"][name]["mean"], abs=0.02), name


def test_an_export_is_not_compared_with_other_prompts_or_settings(
    evaluated: Session, again: Callable[..., Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    file = interactive.export(evaluated, formats=["safetensors"])[0]
    again(evaluated, file=file, steps=2)
    assert (
        "cup.safetensors was not compared: its checkpoint was evaluated with other prompts or settings"
        in capsys.readouterr().out
    )
    (evaluated.path / "evaluation" / "evaluation.json").unlink()
    again(evaluated, file=file, steps=2)
    assert (
        "cup.safetensors was not compared: no evaluation of the checkpoints can be read (FileNotFoundError)"
        in capsys.readouterr().out
    )


def test_the_notebook_shows_the_grid_above_the_curves(
    evaluated: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    again: Callable[..., Evaluation],
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(results, "evaluate", lambda session, **options: asked.append(options))
    monkeypatch.setattr(console, "show_evaluation", lambda evaluation: None)
    assert notebook.compare("", 2) is None
    assert "Enter the name of a session" in capsys.readouterr().out
    assert asked == []
    picture = notebook.compare(evaluated, 2)
    assert [options["seeds"] for options in asked] == [2]
    grid, curves = (read_photo(evaluated.path / "evaluation" / name) for name in ("grid.png", "curves.png"))
    assert picture is not None
    assert picture.height == grid.height + curves.height
    assert picture.crop((0, 0, *grid.size)).tobytes() == grid.tobytes()
    assert picture.crop((0, grid.height, curves.width, picture.height)).tobytes() == curves.tobytes()


def test_a_damaged_checkpoint_is_skipped_with_a_note(
    evaluated: Session, again: Callable[..., Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = evaluated.checkpoints / "unet-000012" / "unet.packed"
    weights.write_bytes(weights.read_bytes()[:-1])
    evaluation = again(evaluated)
    assert [candidate.label for candidate in evaluation.candidates] == ["step 0", "step 4", "step 8", "step 16"]
    output = capsys.readouterr().out
    assert "Skipping checkpoint unet-000012: unet.packed has" in output


def refusal(call: Callable[[], object], kind: type[FastDBError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_session_without_checkpoints_is_refused(
    session: Session, again: Callable[..., Evaluation], no_engine: None
) -> None:
    shutil.rmtree(session.checkpoints / "text_encoder-000004")
    line = refusal(lambda: again(session), TrainingError)
    assert line.startswith("cup: the text encoder of step 4, with which the UNet was trained, is missing")
    shutil.rmtree(session.checkpoints)
    line = refusal(lambda: again(session), TrainingError)
    assert line == ("cup: there is no valid checkpoint of the UNet stage. Train it first: fastdb train cup")
    assert not (session.path / "evaluation").exists()


def test_missing_steps_are_refused(session: Session, again: Callable[..., Evaluation]) -> None:
    line = refusal(lambda: again(session, checkpoints=[4, 15, 99]), ConfigError)
    assert line == ("cup has no checkpoint of the UNet stage at step 15, 99. Existing steps: 4, 8, 12, 16.")


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"measure": "eye"}, ConfigError, "'eye' is an unknown measure"),
        ({"sampler": "DDMI"}, ConfigError, "Did you mean DDIM"),
        ({"steps": 0}, ConfigError, "steps 0 is not between"),
        ({"guidance": -1.0}, ConfigError, "guidance -1.0 is not between"),
        ({"seeds": 0}, ConfigError, "seeds 0 is not between"),
        ({"prompts": [" "]}, ConfigError, "prompts: a prompt is empty"),
        ({"clip": "/nowhere"}, ModelError, "/nowhere: the folder does not exist. Pass --clip"),
        ({"dino": "/nowhere"}, ModelError, "/nowhere: the folder does not exist. Pass --dino"),
        ({"file": "/nowhere/cup.safetensors"}, ModelError, "there is no such file"),
    ],
)
def test_invalid_options_are_refused_before_drawing(
    session: Session,
    again: Callable[..., Evaluation],
    no_engine: None,
    changed: dict[str, Any],
    kind: type[FastDBError],
    message: str,
) -> None:
    assert message in refusal(lambda: again(session, **changed), kind)
    assert not (session.path / "evaluation").exists()


def test_a_session_without_instance_images_is_refused(session: Session, again: Callable[..., Evaluation]) -> None:
    for path in session.instance_images.glob("*.png"):
        path.unlink()
    assert "there are no instance images to compare with" in refusal(lambda: again(session), ImageError)


def test_another_base_model_is_refused(session: Session, again: Callable[..., Evaluation]) -> None:
    record = session.path / "session.yaml"
    record.write_text(record.read_text().replace(session.record.base_model.fingerprint, "a" * 64))
    assert "this base model has other weights than the session" in refusal(lambda: again(session), TrainingError)


def test_a_session_in_training_is_refused(session: Session, again: Callable[..., Evaluation]) -> None:
    shutil.rmtree(session.checkpoints / "unet-000016")
    running = process.start(session)
    try:
        line = refusal(lambda: again(session), SessionBusy)
    finally:
        running.stop()
        list(running.follow())
        running.reap()
    assert line == "cup: training is running. Wait until it ends or stop it, then retry."


def test_out_of_memory_has_a_message(
    session: Session, again: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Engine, "generate_together", full)
    line = refusal(lambda: again(session), TrainingError)
    assert line.startswith("evaluation: the GPU is out of memory (CUDA out of memory.")
