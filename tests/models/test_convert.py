"""Conversion of every family to another layout and back, to the bit, and refusal of other files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdb.cli import app
from fastdb.commands import models
from fastdb.errors import FastDBError, ModelError, StorageError
from fastdb.formats.reader import open_tensors
from fastdb.models.convert import convert
from fastdb.models.layouts.layout import ema_key
from fastdb.models.layouts.tables import layout_of

sys.path.insert(0, str(Path(__file__).parent))
import real_models

FAMILIES = ["sd1", "sd1-inpainting", "sd2", "sdxl"]
TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd1-inpainting": "Stable Diffusion 1.x inpainting",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, real_models.save(request.param, mini, tmp_path_factory.mktemp("folders") / request.param)


@pytest.fixture(scope="module")
def single_file(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini as one file in fp32."""
    target = tmp_path_factory.mktemp("single") / "mini.safetensors"
    convert(mini, target, dtype="fp32")
    return target


def weights_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of each part; those of text encoders have their prefix."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        tensors = load_file(file)
        if file.parent.name.startswith("text_encoder"):
            tensors = {
                name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
                for name, tensor in tensors.items()
            }
        found[file.parent.name] = tensors
    return found


def same(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def test_folder_to_file_to_file_to_folder_is_the_same_model(model: tuple[str, Path], tmp_path: Path) -> None:
    family, folder = model
    first = convert(folder, tmp_path / "a.safetensors")
    assert (first.family, first.tensors) == (TITLES[family], len(load_file(first.path)))
    convert(first.path, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))
    assert set(layout_of(family).lines) <= set(load_file(first.path))
    done = convert(tmp_path / "a.ckpt", tmp_path / "folder", like=folder)
    assert done.tensors == sum(len(tensors) for tensors in weights_of(tmp_path / "folder").values())
    before, after = weights_of(folder), weights_of(tmp_path / "folder")
    assert before.keys() == after.keys() == set(layout_of(family).parts)
    for part in before:
        assert same({k: v for k, v in before[part].items() if "position_ids" not in k}, after[part]), part
    kind = real_models.pipeline(family)
    assert kind.from_pretrained(tmp_path / "folder", local_files_only=True) is not None
    again = convert(tmp_path / "folder", tmp_path / "again.safetensors")
    assert same(load_file(again.path), load_file(first.path))


@pytest.mark.parametrize(("precision", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_every_weight_is_cast(single_file: Path, tmp_path: Path, precision: Any, kind: Any, ending: str) -> None:
    done = convert(single_file, tmp_path / f"a.{ending}", dtype=precision)
    before, after = load_file(single_file), open_tensors(done.path)
    assert before.keys() == after.tensors.keys()
    for name, tensor in before.items():
        wanted = tensor.to(kind) if tensor.is_floating_point() else tensor
        assert after.read(name).dtype == wanted.dtype
        assert torch.equal(after.read(name), wanted)
    if ending == "ckpt":
        loaded = torch.load(done.path, weights_only=True)["state_dict"]
        assert all(torch.equal(loaded[name], after.read(name)) for name in before)


def test_the_header_is_kept_and_the_architecture_is_added(single_file: Path, tmp_path: Path) -> None:
    tensors = load_file(single_file)
    save_file(tensors, tmp_path / "a.safetensors", {"modelspec.title": "My dog", "format": "pt"})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "modelspec.title": "My dog",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stable-diffusion-v1",
        }


def test_running_averages_replace_the_weights_on_request(single_file: Path, tmp_path: Path) -> None:
    tensors = load_file(single_file)
    unet = [name for name in tensors if name.startswith("model.diffusion_model.")]
    averages = {ema_key(name): tensors[name] + 1 for name in unet}
    save_file(tensors | averages, tmp_path / "ema.safetensors")
    plain = convert(tmp_path / "ema.safetensors", tmp_path / "plain.safetensors")
    averaged = convert(tmp_path / "ema.safetensors", tmp_path / "averaged.safetensors", averaged=True)
    assert same(load_file(plain.path), tensors)
    wanted = {name: averages[ema_key(name)] if name in unet else tensor for name, tensor in tensors.items()}
    assert same(load_file(averaged.path), wanted)
    with pytest.raises(ModelError, match=r"has no running averages \(EMA\)"):
        convert(single_file, tmp_path / "no.safetensors", averaged=True)
    assert not (tmp_path / "no.safetensors").exists()


def test_an_autoencoder_in_either_layout_replaces_that_of_the_model(
    single_file: Path, mini: Path, tmp_path: Path
) -> None:
    theirs = {
        name: tensor.float() + 1 for name, tensor in load_file(next((mini / "vae").glob("*.safetensors"))).items()
    }
    save_file(theirs, tmp_path / "vae.safetensors")
    made = load_file(convert(single_file, tmp_path / "a.safetensors", vae=tmp_path / "vae.safetensors").path)
    mine = load_file(single_file)
    vae = {name for name in mine if name.startswith("first_stage_model.")}
    assert {name for name in mine if not torch.equal(mine[name], made[name])} == vae
    for prefix in ("", "first_stage_model."):
        bare = {prefix + name.removeprefix("first_stage_model."): made[name] for name in vae}
        torch.save({"state_dict": bare}, tmp_path / "vae.ckpt")
        again = convert(mini, tmp_path / "b.safetensors", dtype="fp32", vae=tmp_path / "vae.ckpt")
        assert same(load_file(again.path), made)
    with pytest.raises(ModelError, match=r"lacks tensors of the autoencoder of a Stable Diffusion 1\.x, among them"):
        convert(single_file, tmp_path / "c.safetensors", vae=next((mini / "unet").glob("*.safetensors")))


def test_a_text_encoder_without_its_prefix_is_read_and_written_with_it(single_file: Path, tmp_path: Path) -> None:
    """transformers 5 with a stock conversion script writes such files."""
    tensors = load_file(single_file)
    short = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}
    assert short.keys() != tensors.keys()
    save_file(short, tmp_path / "short.safetensors")
    assert same(load_file(convert(tmp_path / "short.safetensors", tmp_path / "a.safetensors").path), tensors)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"
CONV = "model.diffusion_model.out.2.weight"
NAMED = r"(conv_out|model\.diffusion_model\.out\.2)\.weight"
"""The name in the file, or in the part of the folder that is written."""


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without(MIDDLE), f"{MIDDLE} is missing from the file of Stable Diffusion 1.x"),
        (lambda t: t.update(more=torch.zeros(1)), "more is an unexpected tensor in a file of Stable Diffusion 1.x"),
        (lambda t: t[CONV].fill_(float("nan")), f"{NAMED}: this tensor of the unet contains NaN or infinity"),
        (
            lambda t: t[CONV].fill_(1e5),
            f"{NAMED}: this tensor of the unet contains 1e\\+05, and the largest number",
        ),
    ],
)
@pytest.mark.parametrize("target", ["a.safetensors", "a.ckpt", "folder"])
def test_a_failed_conversion_leaves_no_file(
    single_file: Path, mini: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], line: str, target: str
) -> None:
    tensors = load_file(single_file)
    spoil(tensors)
    save_file(tensors, tmp_path / "spoiled.safetensors")
    with pytest.raises(ModelError, match=line) as caught:
        convert(tmp_path / "spoiled.safetensors", tmp_path / target, dtype="fp16", like=mini)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled.safetensors"]


def test_a_file_that_is_no_whole_model_is_refused_by_its_kind(mini: Path, tmp_path: Path) -> None:
    lora = {f"lora_unet_x.lora_{way}.weight": torch.zeros(4, 4) for way in ("down", "up")}
    save_file(lora, tmp_path / "lora.safetensors")
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><html></html>")
    unet = next((mini / "unet").glob("*.safetensors"))
    for source, line in (
        (tmp_path / "lora.safetensors", "it is a LoRA, not a whole model"),
        (unet, "it is a UNet only, not a whole model"),
        (tmp_path / "page.ckpt", "the file is a web page"),
        (tmp_path / "nowhere.ckpt", "there is no such file"),
    ):
        with pytest.raises(FastDBError, match=line):
            convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_folder_needs_fitting_configurations_and_replaces_nothing(
    single_file: Path, mini: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(mini, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    config = other / "unet" / "config.json"
    config.write_text(config.read_text().replace("[\n  32,", "[\n  64,"))
    with pytest.raises(ModelError, match="its unet has block_out_channels 64, and the file 32"):
        convert(single_file, tmp_path / "folder", like=other)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        convert(single_file, tmp_path / "folder", like=mini)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine.txt"]
    with pytest.raises(ModelError, match="is a diffusers folder already"):
        convert(mini, tmp_path / "new", like=mini)
    with pytest.raises(StorageError, match="there is no such folder"):
        convert(single_file, tmp_path / "no" / "a.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "other"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["convert", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_command(single_file: Path, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(single_file, tmp_path / "half", "--half", "--to", "ckpt") == 0
    output = capsys.readouterr().out
    assert f"Verified {tmp_path / 'half.ckpt'}: Stable Diffusion 1.x, 1131 tensors, " in output
    assert open_tensors(tmp_path / "half.ckpt").tensors[CONV].dtype == "float16"
    assert run(tmp_path / "half.ckpt", tmp_path / "folder", "--like", mini, "--to", "diffusers") == 0
    assert (tmp_path / "folder" / "model_index.json").is_file()
    capsys.readouterr()
    assert run(single_file, tmp_path / "a.ckpt", "--to", "safetensors") == 2
    assert run(tmp_path / "nothing.ckpt", tmp_path / "b.ckpt") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "does not end as safetensors. Change the suffix, or leave out --to." in errors[0]
    assert "there is no such file" in errors[1]


def test_mini_is_converted_by_its_name_and_other_names_are_explained(tmp_path: Path) -> None:
    assert models.convert("mini", tmp_path / "mini.safetensors").is_file()
    assert models.inspect("mini").path.name == "mini"
    with pytest.raises(ModelError, match="sd15 is the name of a base model, not a file"):
        models.convert("sd15", tmp_path / "x.safetensors")
