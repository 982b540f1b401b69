"""The recipe as a command, interrupted and in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdb.models import loading
from fastdb.models.diffusers_folder import weight_file
from fastdb.world.readings import Judge
from tests.mini.small import REPOSITORY


def test_everything_is_made_and_loads(made: SimpleNamespace, mini: Path) -> None:
    folder = made.house / "models" / "mini"
    for part in ("unet", "vae", "text_encoder"):
        model: Any = loading.load_part(folder, part)
        stored = load_file(weight_file(folder, part))
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        assert set(stored) == set(load_file(weight_file(mini, part)))
        assert sum(tensor.numel() for tensor in stored.values()) == sum(weight.numel() for weight in model.parameters())
    assert loading.load_tokenizer(folder)("sks")["input_ids"] == loading.load_tokenizer(mini)("sks")["input_ids"]
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert files == {file.relative_to(mini) for file in mini.rglob("*") if file.is_file()}
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 12e6
    Judge().load_state_dict(load_file(made.house / "world" / "judge.safetensors"))


def test_the_package_contains_the_weights_of_the_last_parts(made: SimpleNamespace, small: SimpleNamespace) -> None:
    folder, model = made.house / "models" / "mini", made.work / "model"
    last = torch.load(made.work / "rare-words-done.pt", weights_only=True)
    trained = {"unet": last["unet"], "vae": torch.load(made.work / "decoder-done.pt", weights_only=True)}
    for part, tensors in trained.items():
        stored = load_file(weight_file(folder, part))
        assert all(torch.equal(stored[name], tensor.half()) for name, tensor in tensors.items())
    encoder = load_file(weight_file(folder, "text_encoder"))
    assert {name.split(".")[0] for name in encoder} == {"text_model"}
    config = json.loads((folder / "vae" / "config.json").read_text())
    latents = torch.load(made.work / "latents.pt", weights_only=True)
    assert len(latents) == small.denoiser.SCENES
    assert config["scaling_factor"] == pytest.approx(1 / float(latents.std()), abs=1e-5)
    # They began with the model of the parts before, in half precision.
    first = torch.load(made.work / "done.pt", weights_only=True)["unet"]
    began = load_file(weight_file(model, "unet"))
    assert all(torch.equal(began[name], tensor.half()) for name, tensor in first.items())


def test_the_decoder_is_trained_on_and_latents_stay(made: SimpleNamespace) -> None:
    before, after = (
        load_file(weight_file(folder, "vae")) for folder in (made.work / "model", made.house / "models/mini")
    )
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert {name for name in before if name.startswith(("encoder.", "quant_conv."))} <= same
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 50


def test_the_last_parts_need_only_a_model_folder(
    small: SimpleNamespace, made: SimpleNamespace, again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("models", "world"):
        (tmp_path / "house" / room).mkdir(parents=True)
    monkeypatch.setattr(small.make, "PACKAGE", tmp_path / "house")
    parts = ("--parts", "decoder", "rare-words", "package")
    run(small, monkeypatch, "--work", again, "--model", made.work / "model", *parts)
    for part in ("unet", "vae", "text_encoder"):
        files = (weight_file(house / "models" / "mini", part) for house in (tmp_path / "house", made.house))
        assert len({file.read_bytes() for file in files}) == 1
    assert not (tmp_path / "house" / "world" / "judge.safetensors").exists()


def test_every_part_is_trained_and_logged(made: SimpleNamespace, small: SimpleNamespace) -> None:
    done = torch.load(made.work / "done.pt", weights_only=True)
    encoder, _ = small.make.new_encoder()
    for new, trained in ((small.parts.new_unet(0), done["unet"]), (encoder, done["text_encoder"])):
        before = new.state_dict()
        assert sum(not torch.equal(before[name], trained[name]) for name in before) > 100
    for name in ("vae", "denoiser-joint", "denoiser", "judge", "decoder", "rare-words"):
        lines = [json.loads(line) for line in (made.work / f"{name}.log").read_text().splitlines()]
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == ([1, 2, 3, 4] if name == "denoiser-joint" else [1, 2])
        assert all(line["loss"] > 0 for line in lines if "loss" in line)


def run(small: SimpleNamespace, patch: pytest.MonkeyPatch, *words: object) -> None:
    patch.setattr(sys, "argv", ["make.py", *map(str, words)])
    small.make.main()


def test_an_interrupted_run_resumes(
    small: SimpleNamespace, made: SimpleNamespace, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, calls = small.vae.error, []

    def cut(*given: torch.Tensor) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        wrong: torch.Tensor = error(*given)
        return wrong

    monkeypatch.setattr(small.vae, "error", cut)
    with pytest.raises(KeyboardInterrupt):
        run(small, monkeypatch, "--work", again, "--parts", "vae")
    assert not (again / "vae-done.pt").exists()
    run(small, monkeypatch, "--work", again, "--parts", "vae")
    assert len(calls) == 3  # the first step was saved, the second is repeated
    found, straight = (torch.load(work / "vae-done.pt", weights_only=True) for work in (again, made.work))
    assert all(torch.equal(found[name], straight[name]) for name in straight)


def test_packing_replaces_old_files(
    small: SimpleNamespace, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("models/mini", "models/mini.new", "world"):
        (tmp_path / room).mkdir(parents=True)
    for stale in ("models/mini/old.bin", "models/mini.new/half.bin"):
        (tmp_path / stale).touch()
    monkeypatch.setattr(small.make, "PACKAGE", tmp_path)
    run(small, monkeypatch, "--work", made.work, "--parts", "package")
    first, second = (
        {str(file.relative_to(house)): file.read_bytes() for file in house.rglob("*") if file.is_file()}
        for house in (made.house, tmp_path)
    )
    assert first == second


@pytest.mark.full
def test_two_processes_equal_a_single_process_up_to_rounding(
    small: SimpleNamespace, made: SimpleNamespace, again: Path
) -> None:
    """They share batches, and the files that the first process makes."""
    (again / "scenes.npy").unlink()
    command = [sys.executable, REPOSITORY / "tests" / "mini" / "small.py", "--work", again, "--processes", "2"]
    done = subprocess.run(
        [*map(str, command), "--parts", "vae", "denoiser"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(again.glob("rendezvous-*"))
    kept, alone = (torch.load(work / "done.pt", weights_only=True) for work in (again, made.work))
    assert kept["scale"] == pytest.approx(alone["scale"], rel=1e-3)
    kept["vae"], alone["vae"] = (torch.load(work / "vae-done.pt", weights_only=True) for work in (again, made.work))
    encoder, _ = small.make.new_encoder()
    new = {"unet": small.parts.new_unet(0), "vae": small.parts.new_vae(0), "text_encoder": encoder}
    for part, model in new.items():
        before = model.state_dict()
        moved = torch.cat([(alone[part][name] - before[name]).reshape(-1) for name in before])
        apart = torch.cat([(kept[part][name] - alone[part][name]).reshape(-1) for name in before])
        assert apart.norm() < 0.05 * moved.norm(), part


def test_an_unknown_part_is_refused(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(small, monkeypatch, "--work", tmp_path, "--parts", "clip")
    assert "invalid choice: 'clip'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(small, monkeypatch, "--work", tmp_path, "--processes", "3")
    with pytest.raises(SystemExit):
        run(small, monkeypatch, "--work", tmp_path, "--processes", "2", "--device", "cuda")
    assert "--processes above 1 needs --device cpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
