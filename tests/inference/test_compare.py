"""Comparison of pictures, equal for equal weights and similar for rounded weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from safetensors.torch import load_file, save_file

from fastdb.cli import app
from fastdb.commands import models
from fastdb.errors import ModelError
from fastdb.inference import compare
from fastdb.inference.compare import _limit, check_render
from fastdb.models import convert as converting
from fastdb.models.convert import convert
from fastdb.models.layouts.layout import ema_key

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import real_models

UNET = "model.diffusion_model."
BIAS = f"{UNET}out.2.bias"


@pytest.fixture(scope="module")
def single(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write mini as one file in fp32, with weights that half precision cannot represent."""
    file = convert(mini, tmp_path_factory.mktemp("single") / "mini.safetensors", dtype="fp32").path
    torch.manual_seed(0)
    moved = {
        name: tensor * (1 + 2e-3 * torch.randn_like(tensor)) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(moved, file)
    return file


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["convert", *map(str, arguments), "--render"])
    return int(ended.value.code or 0)


def test_a_folder_and_its_file_generate_the_same_picture(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(mini, tmp_path / "a.ckpt", "--precision", "fp32") == 0
    place = tmp_path / "a.render.png"
    assert (
        f"a.ckpt generates the picture of its source: largest difference 0 of 255, mean 0.00, 1 allowed; see {place}"
        in (capsys.readouterr().out)
    )
    with Image.open(place) as picture:
        assert picture.width > 128
    assert run(tmp_path / "a.ckpt", tmp_path / "folder", "--like", mini) == 0
    assert "largest difference 0 of 255" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.render.png", "folder", "folder.render.png"]


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1), ("fp16", 16), ("bf16", 64)])
def test_rounded_weights_generate_a_similar_picture(
    single: Path, mini: Path, tmp_path: Path, precision: Any, most: int
) -> None:
    file = convert(single, tmp_path / "a.safetensors", dtype=precision).path
    found = check_render(single, file, mini)
    assert found.allowed == most
    assert found.most * 4 <= most
    assert (found.most == 0) == (precision == "fp32")


def test_a_model_of_sd_2_is_compared(mini: Path, tmp_path: Path) -> None:
    folder = real_models.save("sd2", mini, tmp_path / "folder")
    models.convert(folder, tmp_path / "a.ckpt", render=True)
    assert (tmp_path / "a.render.png").is_file()


def test_running_averages_are_compared_with_running_averages(single: Path, mini: Path, tmp_path: Path) -> None:
    tensors = load_file(single)
    averages = {ema_key(name): tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    noise = {name: torch.randn_like(tensors[name]) for name in tensors if name.startswith(UNET)}
    save_file(tensors | averages | noise, tmp_path / "ema.safetensors")
    assert run(tmp_path / "ema.safetensors", tmp_path / "a.safetensors", "--ema", "--like", mini) == 0


def test_another_picture_is_an_error_and_the_result_is_kept(
    single: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoiled(*arguments: Any, **more: Any) -> Any:
        done = convert(*arguments, **more)
        tensors = load_file(done.path)
        save_file(tensors | {BIAS: tensors[BIAS] + 0.05}, done.path)
        return done

    monkeypatch.setattr(converting, "convert", spoiled)
    assert run(single, tmp_path / "a.safetensors", "--like", mini) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'a.safetensors'} generates another picture than its source: largest difference " in error
    assert f"at most 1 is explained by its precision. See {tmp_path / 'a.render.png'}, and do not use" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.render.png", "a.safetensors"]


def test_files_are_compared_without_like(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    for name in ("a.ckpt", "b.safetensors"):
        models.convert(single, tmp_path / name, render=True)
        assert (tmp_path / name).with_suffix(".render.png").is_file()
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "configurations alone"


def test_models_that_cannot_be_compared_are_refused_before_writing(single: Path, mini: Path, tmp_path: Path) -> None:
    big = real_models.save("sdxl", mini, tmp_path / "sdxl")
    for source, more, line in (
        (single, {"vae": single, "like": mini}, "another autoencoder changes the pictures"),
        (big, {}, "cannot be compared by pictures: SDXL base is not supported"),
    ):
        with pytest.raises(ModelError, match=line):
            models.convert(source, tmp_path / "a.safetensors", render=True, **more)
    assert [path.name for path in tmp_path.iterdir()] == ["sdxl"]


def test_limits_depend_on_the_precisions() -> None:
    limits = compare.LIMITS
    for before, after, wanted in (
        ({"float16"}, {"float32"}, "exact"),
        ({"float16"}, {"float16"}, "exact"),
        ({"float32"}, {"float16"}, "float16"),
        ({"float16", "float32"}, {"float16"}, "float16"),
        ({"float16"}, {"bfloat16"}, "bfloat16"),
        ({"bfloat16"}, {"bfloat16"}, "exact"),
    ):
        assert _limit(before, after) == limits[wanted]
