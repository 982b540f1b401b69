"""The .yaml file beside an SD 2.x, from which diffusers builds the same model; SD 1 has none."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders.single_file_utils import create_unet_diffusers_config_from_ldm
from safetensors import safe_open
from transformers import CLIPTextModel

from fastdb.cli import app
from fastdb.commands.inspection_rows import UNKNOWN_PREDICTION, inspection_rows
from fastdb.errors import ModelError, StorageError
from fastdb.models import inspect as inspecting
from fastdb.models.convert import convert
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.export import export_model
from fastdb.models.inspect import inspect
from fastdb.models.loading import load_tokenizer
from fastdb.models.prediction import UNKNOWN, Prediction, write_yaml
from fastdb.storage import atomic_write

sys.path.insert(0, str(Path(__file__).parent))
import original_names
import real_models

WIDTHS, CODE = (32, 64, 128, 128), (32, 64, 96, 96)

KINDS = {"epsilon": "epsilon", "v_prediction": "v"}


def two(mini: Path, folder: Path, prediction: str) -> Path:
    """Save a narrow SD 2.x in the diffusers layout, whose UNet predicts noise or v."""
    torch.manual_seed(0)
    levels = real_models.LEVELS["sd2"] | {"attention_head_dim": [width // 32 for width in WIDTHS]}
    unet = diffusers.UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=1024, **levels)
    torch.nn.init.constant_(unet.conv_out.bias, 0.5 if prediction == "epsilon" else -3.0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=CODE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    text = CLIPTextModel(real_models.text_config(original_names.SIZES["narrow"], "sd2", layers=23))
    diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=load_tokenizer(mini),
        scheduler=diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, two(mini, tmp_path_factory.mktemp("two") / "folder", request.param)


def params(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
    return found


def header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_diffusers_builds_the_same_networks_from_it(model: tuple[str, Path], tmp_path: Path, ending: str) -> None:
    prediction, folder = model
    done = convert(folder, tmp_path / f"my.dog.{ending}")
    assert done.config == tmp_path / "my.dog.yaml"
    assert params(done.config).get("parameterization", "eps") == ("v" if prediction == "v_prediction" else "eps")
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    for part, kind in kinds.items():
        mine = kind.from_single_file(str(done.path), original_config=str(done.config), local_files_only=True)
        theirs = kind.from_pretrained(folder / part)
        states = mine.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        for name in ("block_out_channels", "attention_head_dim", "cross_attention_dim", "use_linear_projection"):
            if name in theirs.config:
                assert list(listed(mine.config[name])) == list(listed(theirs.config[name])), name


def listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def test_the_real_model_has_the_configuration_of_stability(tmp_path: Path) -> None:
    """Compare the UNet, as diffusers reads it, and the other settings."""

    def written(kind: str) -> dict[str, Any]:
        file = write_yaml(tmp_path / "a.ckpt", original_names.whole("sd2"), kind)
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))

    found = written("v_prediction")
    unet = create_unet_diffusers_config_from_ldm(found, {})
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet["attention_head_dim"] == [5, 10, 20, 20]
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert (unet["cross_attention_dim"], unet["use_linear_projection"]) == (1024, True)
    inner = found["model"]["params"]
    assert found["model"]["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert (inner["parameterization"], inner["linear_start"], inner["linear_end"]) == ("v", 0.00085, 0.012)
    assert (inner["scale_factor"], inner["timesteps"], inner["use_ema"]) == (0.18215, 1000, False)
    assert inner["first_stage_config"]["params"]["ddconfig"] == {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    assert inner["cond_stage_config"]["target"].endswith(".FrozenOpenCLIPEmbedder")
    assert inner["cond_stage_config"]["params"] == {"freeze": True, "layer": "penultimate"}
    assert "parameterization" not in written("epsilon")["model"]["params"]


def test_the_prediction_type_is_kept_from_file_to_file_to_folder(
    model: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction, folder = model
    monkeypatch.setattr(inspecting, "probe_unet", lambda *_: pytest.fail("the UNet was probed"))
    kind = KINDS[prediction]
    convert(folder, tmp_path / "a.safetensors")
    architecture = "stable-diffusion-v2-768-v" if kind == "v" else "stable-diffusion-v2-512"
    assert header(tmp_path / "a.safetensors")["modelspec.architecture"] == architecture
    assert header(tmp_path / "a.safetensors")["modelspec.prediction_type"] == kind
    convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    assert inspect(tmp_path / "b.ckpt").prediction == Prediction(prediction, source="yaml")
    convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors", dtype="fp16")
    assert header(tmp_path / "c.safetensors")["modelspec.prediction_type"] == kind
    convert(tmp_path / "b.ckpt", tmp_path / "d", like=folder)
    other = shutil.copytree(folder, tmp_path / "other")
    scheduler = other / "scheduler" / "scheduler_config.json"
    wrong = "epsilon" if kind == "v" else "v_prediction"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": wrong}))
    with pytest.raises(ModelError, match=f"its scheduler is for a UNet that predicts {wrong}, and that of the model"):
        convert(tmp_path / "b.ckpt", tmp_path / "e", like=other)
    assert not (tmp_path / "e").exists()


def test_an_unknown_prediction_type_is_probed_or_given(model: tuple[str, Path], tmp_path: Path) -> None:
    prediction, folder = model
    convert(folder, tmp_path / "a.ckpt")
    (tmp_path / "a.yaml").unlink()
    assert inspect(tmp_path / "a.ckpt").prediction == UNKNOWN
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert header(tmp_path / "b.safetensors")["modelspec.prediction_type"] == KINDS[prediction]
    assert ("parameterization" in params(tmp_path / "b.yaml")) == (prediction == "v_prediction")
    wrong = "epsilon" if prediction == "v_prediction" else "v_prediction"
    with pytest.raises(SystemExit) as ended:
        app(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.safetensors"), "--prediction", wrong])
    assert not ended.value.code
    assert header(tmp_path / "c.safetensors")["modelspec.prediction_type"] == KINDS[wrong]
    assert ("parameterization" in params(tmp_path / "c.yaml")) == (wrong == "v_prediction")


def test_an_export_replaces_the_yaml_file(model: tuple[str, Path], tmp_path: Path) -> None:
    prediction, folder = model
    parts = {part: weight_file(folder, part) for part in ("unet", "vae", "text_encoder")}
    (tmp_path / "dog.yaml").write_text("of the file that was here before")
    for metadata in ({"modelspec.prediction_type": KINDS[prediction]}, {}):
        export_model(parts, tmp_path / "dog.ckpt", dtype="fp16", metadata=metadata, family="sd2")
        assert ("parameterization" in params(tmp_path / "dog.yaml")) == (prediction == "v_prediction")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.ckpt", "dog.yaml"]


def test_other_families_leave_a_yaml_file_alone(mini: Path, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("mine")
    assert convert(mini, tmp_path / "a.safetensors").config is None
    assert convert(mini, tmp_path / "b.ckpt").config is None
    assert (tmp_path / "b.yaml").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.ckpt", "b.yaml"]


def test_the_yaml_file_is_replaced_completely_or_not_at_all(
    model: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = model
    (tmp_path / "a.yaml").write_text("old")
    real = atomic_write.os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".yaml"):
            raise OSError(28, "No space left on device", str(source))
        real(source, target)

    monkeypatch.setattr(atomic_write.os, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        convert(folder, tmp_path / "a.safetensors")
    assert (tmp_path / "a.yaml").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("LatentDiffusion\n    parameterization: v\n", "v, by a.yaml beside it"),
        ("LatentDiffusion\n    parameterization: 'v' # velocity\r\n", "v, by a.yaml beside it"),
        ("LatentDiffusion\n    # parameterization: v\n", "epsilon, by a.yaml beside it"),
        ("LatentDiffusion\n    parameterization: eps\n", "epsilon, by a.yaml beside it"),
        ("a song list\nparameterization: v\n", UNKNOWN_PREDICTION),
        ("\x00" * 10, UNKNOWN_PREDICTION),
    ],
)
def test_the_yaml_file_of_another_program_is_read(
    model: tuple[str, Path], tmp_path: Path, text: str, wanted: str
) -> None:
    convert(model[1], tmp_path / "a.ckpt", prediction="epsilon")
    (tmp_path / "a.yaml").write_text(text)
    assert ("prediction", wanted) in inspection_rows(inspect(tmp_path / "a.ckpt"))
