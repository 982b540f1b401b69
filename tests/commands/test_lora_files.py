"""Exported LoRA files: names, metadata, and the programs that read them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open
from safetensors.torch import load_file

from fastdb.commands import results
from fastdb.errors import ConfigError
from fastdb.formats.reader import open_tensors
from fastdb.models.diffusers_configs import configs
from fastdb.models.diffusers_folder import read_config
from fastdb.models.family import SD1
from fastdb.models.loading import load_part, load_single_file
from fastdb.models.lora.forms import kohya_layer
from fastdb.models.lora.targets import factor_shapes, target_layers
from fastdb.notebook import cells, picture_cells
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.models.test_lora import called, sd15, shapes_of
from tests.training.conftest import (  # noqa: F401 - fixtures
    copy,
    make_session,
    outcome,
    raw,
    small_photos,
    trained_once,
)

LORA: dict[str, Any] = {
    "method": "lora",
    "lora__rank": 4,
    "lora__alpha": 2,
    "lora__rslora": True,
    "prior__class_images": 0,
    "text_encoder__steps": 2,
    "text_encoder__learning_rate": 1e-2,
    "unet__steps": 2,
    "unet__learning_rate": 1e-2,
}
SD_SCRIPTS = os.environ.get("SD_SCRIPTS", "")


@pytest.fixture(scope="session")
def learned(trained_once: Callable[..., Session]) -> Session:  # noqa: F811
    return trained_once("lora files", lambda session: outcome(process.start(session)), **LORA)


@pytest.fixture
def exported(learned: Session, copy: Callable[[Session], Session]) -> Session:  # noqa: F811
    """A session with both LoRA files in single precision."""
    session = copy(learned)
    files = results.export(session, precision="fp32")
    assert [file.name for file in files] == ["cup_lora.safetensors", "cup_lora_diffusers.safetensors"]
    return Session.open(session.path)


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def test_both_forms_have_the_numbers_of_the_checkpoint(exported: Session) -> None:
    kohya, other = (load_file(exported.path / f"cup_lora{ending}.safetensors") for ending in ("", "_diffusers"))
    for part, name in (("text_encoder", "text_encoder-000002/text_encoder"), ("unet", "unet-000002/unet")):
        saved = load_file(raw(exported, name))
        for layer in {name.rpartition(".")[0] for name in saved}:
            down, up = saved[f"{layer}.lora_down"], saved[f"{layer}.lora_up"]
            mine = kohya_layer(part, layer)
            assert torch.equal(kohya[f"{mine}.lora_down.weight"], down)
            assert torch.equal(kohya[f"{mine}.lora_up.weight"], up)
            # Alpha 2 over the root of 4 is a scale of 1, which every reader computes as 4 over 4.
            assert float(kohya[f"{mine}.alpha"]) == 4
            assert torch.equal(other[f"{part}.{layer}.lora_A.weight"], down)
            assert torch.equal(other[f"{part}.{layer}.lora_B.weight"], up)
    assert len(kohya) == 3 * (192 + 72)
    assert len(other) == 2 * (192 + 72)


def test_metadata_is_that_which_programs_look_for(exported: Session) -> None:
    file = exported.path / "cup_lora.safetensors"
    metadata = metadata_of(file)
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "cup_lora",
        "ss_resolution": "(64, 64)",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "sks",
        "fastdb.steps": "text_encoder 2, unet 2",
    }
    assert {name: metadata[name] for name in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {"cup": {"sks": 3}}
    opened = open_tensors(file)
    data = file.read_bytes()[min(info.start for info in opened.tensors.values()) :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert not any(name.startswith("ss_") for name in metadata_of(exported.path / "cup_lora_diffusers.safetensors"))


def test_a_merged_export_is_base_plus_adapter(exported: Session, mini: Path) -> None:
    (file,) = results.export(exported, merged=True, formats=["safetensors"], precision="fp32")
    parts = {part: read_config(mini / part / "config.json") for part in ("unet", "text_encoder")}
    whole = load_single_file(file, parts)
    for part, name in (("text_encoder", "text_encoder-000002/text_encoder"), ("unet", "unet-000002/unet")):
        expected = load_part(mini, part, weights=raw(exported, name))
        assert torch.equal(called(whole[part], part), called(expected, part))
        assert not torch.equal(called(whole[part], part), called(load_part(mini, part), part))
    assert Session.open(exported.path).exports == tuple(
        exported.path / name for name in ("cup.safetensors", "cup_lora.safetensors", "cup_lora_diffusers.safetensors")
    )


@pytest.mark.parametrize("options", [{"formats": ["ckpt"]}, {"render": True}])
def test_options_that_need_a_whole_model_name_the_merged_export(learned: Session, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"trains a LoRA\. Export the merged model: fastdb export cup --merged --"):
        results.export(learned, **options)


def test_the_merged_export_of_all_weights_is_refused(make_session: Callable[..., Session]) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"this session trains all weights\. Run: fastdb export cup"):
        results.export(make_session(), merged=True)


def test_the_cells_of_the_notebook_use_the_files_that_fit_the_method(
    learned: Session,
    copy: Callable[[Session], Session],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = copy(learned)
    picture_cells.export(session, "safetensors and ckpt")
    assert (session.path / "cup_lora.safetensors").is_file()
    with pytest.raises(ConfigError, match="needs a whole model"):
        picture_cells.export(session, "ckpt")
    capsys.readouterr()
    cells.finish(session, "download the safetensors")
    assert capsys.readouterr().out.endswith("cup_lora.safetensors\n")


def test_diffusers_reads_both_forms(exported: Session, mini: Path) -> None:
    """Its reader of the text encoder fails with transformers 5.6 and later, which flattened that module."""
    pytest.importorskip("peft")
    import transformers
    from diffusers import StableDiffusionPipeline

    flat = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 6)
    parts = {"unet": "unet-000002/unet"} | ({} if flat else {"text_encoder": "text_encoder-000002/text_encoder"})
    for ending in ("", "_diffusers"):
        pipeline = StableDiffusionPipeline.from_pretrained(mini, safety_checker=None)
        tensors = load_file(exported.path / f"cup_lora{ending}.safetensors")
        chosen = {name: tensor for name, tensor in tensors.items() if not flat or "unet" in name.split(".")[0]}
        pipeline.load_lora_weights(chosen)
        for part, name in parts.items():
            expected = load_part(mini, part, weights=raw(exported, name))
            assert torch.allclose(called(getattr(pipeline, part), part), called(expected, part), rtol=1e-4, atol=1e-4)


PROGRAM = """
import importlib.machinery, json, sys, types
sys.path.insert(0, sys.argv[1])
import torch


class Absent(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return types.SimpleNamespace() if name[0].islower() else type(name, (), {})


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torchvision", "cv2", "imagesize", "toml", "library"}:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = Absent(spec.name)
        if spec.name == "library.utils":
            module.setup_logging = lambda *words, **options: None
        return module

    def exec_module(self, module):
        pass


import diffusers, transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
sys.meta_path.insert(0, Finder())
from networks.lora import LoRANetwork
unet, encoder = json.loads(sys.argv[2]), json.loads(sys.argv[3])
with torch.device("meta"):
    modules = CLIPTextModel(CLIPTextConfig(**encoder)), UNet2DConditionModel.from_config(unet)
    conv = {"conv_lora_dim": 8, "conv_alpha": 8} if sys.argv[4] == "kohya-conv" else {}
    network = LoRANetwork(*modules, lora_dim=8, alpha=8, **conv)
    for lora in (*network.text_encoder_loras, *network.unet_loras):
        network.add_module(lora.lora_name, lora)
print(json.dumps({name: list(tensor.shape) for name, tensor in network.state_dict().items()}))
"""


@pytest.mark.skipif(not SD_SCRIPTS, reason="SD_SCRIPTS does not name a checkout of kohya's sd-scripts")
@pytest.mark.parametrize("targets", ["kohya", "kohya-conv"])
def test_keys_and_shapes_are_those_of_sd_scripts(targets: str) -> None:
    """For Stable Diffusion 1.5; asked in a process of its own, because the first answer changes the second.

    Its text encoder's modules may lack `text_model.`, which files always have.
    """
    files = configs(SD1)
    words = [json.dumps(files[f"{part}/config.json"]) for part in ("unet", "text_encoder")]
    command = [sys.executable, "-c", PROGRAM, SD_SCRIPTS, *words, targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = {
        name.replace("lora_te_encoder", "lora_te_text_model_encoder"): tuple(shape)
        for name, shape in json.loads(done.stdout.splitlines()[-1]).items()
        if ".org_module." not in name
    }
    ours: dict[str, tuple[int, ...]] = {}
    for part in ("unet", "text_encoder"):
        for layer, shape in target_layers(part, shapes_of(sd15(part)), targets).items():
            name, (down, up) = kohya_layer(part, layer), factor_shapes(shape, 8)
            ours |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": ()}
    assert ours == theirs
    assert len(ours) == 3 * (72 + (278 if targets == "kohya-conv" else 192))
