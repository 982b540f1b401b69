"""Inspection of every family, part and addition, and of other files."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastdb.cli import app
from fastdb.commands import models
from fastdb.commands.inspection_rows import UNKNOWN_PREDICTION, inspection_rows
from fastdb.errors import ModelError
from fastdb.models.detect import FLUX, REFINER, SD1, SD2, SD3, XL
from fastdb.models.inspect import Inspection, inspect
from fastdb.models.prediction import Prediction
from tests.other_models import originals

sys.path.insert(0, str(Path(__file__).parent))
import sd1_names

Shapes = dict[str, tuple[int, ...]]
BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", **metadata: str) -> Path:
    """Write a sparse safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        kind = "I64" if name.endswith("position_ids") else dtype
        start, end = end, end + math.prod(shape) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def unet(width: int = 768, channels: int = 4, linear: bool = False, prefix: str = "model.diffusion_model.") -> Shapes:
    """Return the tensors by which an original UNet is recognised."""
    proj = (320, 320) if linear else (320, 320, 1, 1)
    shapes: Shapes = {
        "input_blocks.0.0.weight": (320, channels, 3, 3),
        "time_embed.0.weight": (1280, 320),
        "input_blocks.1.1.proj_in.weight": proj,
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        "input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
        "out.2.weight": (4, 320, 3, 3),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def xl(width: int = 2048, prefix: str = "model.diffusion_model.") -> Shapes:
    shapes = unet(width, linear=True, prefix=prefix)
    if width == 2048:
        shapes.pop(f"{prefix}input_blocks.9.0.op.weight")
    return shapes | {f"{prefix}label_emb.0.0.weight": (1280, 2816)}


def vae(prefix: str = "first_stage_model.", channels: int = 4) -> Shapes:
    names = {"decoder.conv_in.weight": (512, channels, 3, 3), "decoder.mid.block_1.norm1.weight": (512,)}
    names |= {"decoder.conv_out.weight": (3, 128, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}
    return {prefix + name: shape for name, shape in names.items()}


CLIP = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)}
OPENCLIP = {"cond_stage_model.model.token_embedding.weight": (49408, 1024)}
XL_TEXTS = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
}
SD3_TRANSFORMER = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
    "model.diffusion_model.context_embedder.weight": (1536, 4096),
}
FLUX_TRANSFORMER = {
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "img_in.weight": (3072, 64),
}
KOHYA = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (16, 768),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 16),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha": (),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768),
}
PEFT = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (640, 4),
}
OLD_DIFFUSERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 1024),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight": (320, 4),
}
CONTROL = {"control_model." + name: shape for name, shape in unet(prefix="").items() if not name.startswith("out.")}
CONTROL |= {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}

FILES: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "SD 1": (unet() | vae() | CLIP, {"role": "checkpoint", "family": SD1, "naming": "original", "channels": 4}),
    "SD 1 inpainting": (unet(channels=9) | vae() | CLIP, {"role": "checkpoint", "family": SD1, "inpainting": True}),
    "SD 2": (unet(1024, linear=True) | vae() | OPENCLIP, {"role": "checkpoint", "family": SD2}),
    "SDXL": (xl() | vae() | XL_TEXTS, {"role": "checkpoint", "family": XL}),
    "SDXL refiner": (xl(1280) | vae(), {"role": "checkpoint", "family": REFINER}),
    "SD 3": (SD3_TRANSFORMER | vae(channels=16), {"role": "checkpoint", "family": SD3}),
    "Flux": (FLUX_TRANSFORMER, {"role": "transformer only", "family": FLUX, "naming": "original"}),
    "UNet only": (unet(prefix=""), {"role": "UNet only", "family": SD1, "naming": "original"}),
    "VAE only": (vae(prefix=""), {"role": "VAE only", "naming": "original"}),
    "VAE of 16 channels": (vae(prefix="", channels=16), {"role": "VAE only", "family": f"{SD3} or {FLUX}"}),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, {"role": "text encoder only"}),
    "without prefix": ({"embeddings.token_embedding.weight": (49408, 1024)}, {"family": SD2}),
    "LoRA of kohya": (KOHYA, {"role": "LoRA", "family": SD1, "naming": "kohya", "detail": "ranks 8 to 16"}),
    "LoRA of peft": (PEFT, {"role": "LoRA", "family": XL, "naming": "peft", "detail": "rank 4"}),
    "LoRA of old": (OLD_DIFFUSERS, {"role": "LoRA", "family": SD2, "naming": "diffusers", "detail": "rank 4"}),
    "LoHa": (
        {"lora_unet_x_attn2_to_k.hada_w1_a": (320, 8), "lora_unet_x_attn2_to_k.hada_w1_b": (8, 768)},
        {"role": "LoRA", "detail": "LoHa, rank 8", "family": SD1},
    ),
    "DoRA": (KOHYA | {"lora_unet_x.dora_scale": (320, 1)}, {"role": "LoRA", "detail": "DoRA, ranks 8 to 16"}),
    "LoRA of Flux": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (16, 3072)},
        {"role": "LoRA", "family": FLUX},
    ),
    "ControlNet": (CONTROL, {"role": "ControlNet", "family": SD1, "parts": ("ControlNet",)}),
    "ControlNet and all": (
        CONTROL | unet() | vae(),
        {"role": "ControlNet", "parts": ("ControlNet", "UNet")},
    ),
    "embedding": ({"emb_params": (3, 768)}, {"role": "textual inversion", "detail": "3 tokens, 768 wide"}),
    "embedding of diffusers": ({"<cat>": (1024,)}, {"role": "textual inversion", "detail": "1 token, 1024 wide"}),
    "embedding of SDXL": (
        {"clip_g": (2, 1280), "clip_l": (2, 768)},
        {"role": "textual inversion", "family": XL, "detail": "2 tokens, 768 and 1280 wide"},
    ),
    "narrow": (unet(64) | vae(), {"family": SD1, "detail": "text states of an unusual width, 64"}),
    "edit by words": (unet(channels=8), {"detail": "8 input channels, neither a plain model nor inpainting"}),
    "nothing": ({}, {"role": "not a model", "why": "it contains no tensors"}),
    "language": (
        {"model.layers.0.self_attn.q_proj.weight": (4096, 4096)},
        {"role": "not a model", "why": "its tensors are those of a language model"},
    ),
    "no UNet": (vae() | CLIP, {"role": "not a model", "why": "it has a VAE and a text encoder, but no UNet"}),
    "something": (
        {"layer1.0.conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512)},
        {"why": "its 2 tensors do not have the names of a Stable Diffusion: layer1.0.conv1.weight, fc.weight"},
    ),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_is_recognised(tmp_path: Path, name: str) -> None:
    shapes, wanted = FILES[name]
    found = inspect(write(tmp_path / "a.safetensors", shapes))
    assert {key: getattr(found.what, key) for key in wanted} == wanted
    assert bool(found.what.why) == (found.what.role == "not a model")
    assert all(text and "\n" not in text for _, text in inspection_rows(found))


def test_the_number_of_kinds_is_documented() -> None:
    assert len(FILES) == 29


@pytest.mark.parametrize(
    ("shapes", "metadata", "wanted"),
    [
        (unet(), {}, "epsilon, the default of its family; the file does not specify it"),
        (unet(), {"modelspec.prediction_type": "v"}, "v, by modelspec.prediction_type"),
        (xl(), {"modelspec.prediction_type": "epsilon"}, "epsilon, by modelspec.prediction_type"),
        (xl() | {"v_pred": (0,)}, {}, "v, by the key v_pred"),
        (unet(1024, linear=True), {}, UNKNOWN_PREDICTION),
        (unet(1024, 9, linear=True), {}, "epsilon, as all inpainting models"),
        (
            unet(1024, linear=True),
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            "v, by modelspec.architecture",
        ),
        (
            unet(1024, linear=True),
            {"modelspec.architecture": "stable-diffusion-v2-512"},
            "epsilon, by modelspec.architecture",
        ),
        (FLUX_TRANSFORMER, {}, "flow, as all models of its family"),
        (vae(), {}, ""),
        (KOHYA, {}, ""),
    ],
)
def test_the_prediction_is_shown_with_its_source(
    tmp_path: Path, shapes: Shapes, metadata: dict[str, str], wanted: str
) -> None:
    found = inspect(write(tmp_path / "a.safetensors", shapes, **metadata))
    assert dict(inspection_rows(found)).get("prediction", "") == wanted


def test_the_prediction_is_a_value(tmp_path: Path) -> None:
    """Kind, whether the noise schedule has zero SNR, and source; ComfyUI's marker keys are read."""
    for keys, wanted in (
        ({}, Prediction("epsilon", source="default")),
        ({"v_pred": (0,)}, Prediction("v_prediction", source="key v_pred")),
        ({"v_pred": (0,), "ztsnr": (0,)}, Prediction("v_prediction", zero_snr=True, source="key v_pred")),
    ):
        assert inspect(write(tmp_path / "a.safetensors", xl() | keys)).prediction == wanted
    assert inspect(write(tmp_path / "a.safetensors", vae())).prediction is None


def test_precision_and_averages_are_counted(tmp_path: Path) -> None:
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)}
    ema = {"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3), "model_ema.decay": ()}
    found = inspect(write(tmp_path / "a.safetensors", unet() | CLIP | positions | ema, "BF16"))
    assert [(total.dtype, total.tensors) for total in found.dtypes] == [("bfloat16", 9), ("int64", 1)]
    assert found.dtypes[1].bytes == 77 * 8
    assert found.ema == 2
    assert ("EMA weights", "2 tensors") in inspection_rows(found)


def full_size() -> tuple[Shapes, Shapes]:
    """Return names and shapes of Stable Diffusion 1.5's UNet, in diffusers and in an original file."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = originals("unet", theirs)
    return theirs, {names[name]: shape for name, shape in theirs.items()}


def test_full_size_sd_1_is_recognised_in_both_namings(tmp_path: Path) -> None:
    theirs, original = full_size()
    assert sorted(original) == sorted(sd1_names.unet())
    for naming, shapes in (("diffusers", theirs), ("original", original)):
        what = inspect(write(tmp_path / "a.safetensors", shapes)).what
        assert (what.role, what.family, what.naming, what.channels) == ("UNet only", SD1, naming, 4)
        assert what.detail == ""


NARROW = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
DIFFUSERS = {
    SD2: {"cross_attention_dim": 1024, "use_linear_projection": True},
    XL: {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 96, **ADDED},
    "inpainting": {"cross_attention_dim": 768, "in_channels": 9},
}


@pytest.mark.parametrize("kind", list(DIFFUSERS))
def test_unets_and_controlnets_of_diffusers_are_recognised(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(down_block_types=DOWN, up_block_types=UP, **NARROW, **DIFFUSERS[kind])
        steering = diffusers.ControlNetModel.from_unet(model, load_weights_from_unet=False)
    for part, role in ((model, "UNet only"), (steering, "ControlNet")):
        shapes = {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
        found = inspect(write(tmp_path / "a.safetensors", shapes))
        assert (found.what.role, found.what.naming) == (role, "diffusers")
        assert found.what.family == (SD1 if kind == "inpainting" else kind)
    assert found.what.role == "ControlNet"


SMALL = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
TRANSFORMERS = {
    FLUX: ("FluxTransformer2DModel", {"num_single_layers": 1, "axes_dims_rope": (4, 4, 8)}),
    SD3: ("SD3Transformer2DModel", {"caption_projection_dim": 32, "sample_size": 8, "pos_embed_max_size": 8}),
}


@pytest.mark.parametrize("family", list(TRANSFORMERS))
def test_transformers_of_diffusers_are_recognised(tmp_path: Path, family: str) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    name, numbers = TRANSFORMERS[family]
    with torch.device("meta"):
        model = getattr(diffusers, name)(pooled_projection_dim=32, **SMALL, **numbers)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    what = inspect(write(tmp_path / "a.safetensors", shapes)).what
    assert (what.role, what.family, what.naming) == ("transformer only", family, "diffusers")


def test_objects_of_a_pickle_that_were_left_out_are_shown(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.ckpt"
    state = {name: torch.zeros(shape) for name, shape in unet(8).items()}
    torch.save({"state_dict": state, "global_step": 7, "callbacks": [Path("x")]}, path)
    rows = dict(inspection_rows(inspect(path)))
    assert rows["what"] == "UNet only"
    assert rows["file"] == "zip of torch.save, original naming"
    assert rows["global_step"] == "7"
    assert rows["left out"] == "pathlib.PosixPath: named in the pickle, never run"


def test_an_old_textual_inversion_is_recognised(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(4, 768)}, "step": 10}, path)
    found = inspect(path)
    assert (found.what.role, found.what.detail) == ("textual inversion", "4 tokens, 768 wide")
    assert found.values["step"] == 10


def test_folders_are_recognised_by_their_configurations(mini: Path, tmp_path: Path) -> None:
    found = inspect(mini)
    assert found.kind == "diffusers folder"
    assert (found.what.role, found.what.family, found.what.channels) == ("checkpoint", SD1, 4)
    assert found.what.parts == ("unet", "vae", "text_encoder")
    assert found.prediction == Prediction("epsilon", source="scheduler")
    assert ("prediction", "epsilon, by the scheduler") in inspection_rows(found)
    assert [(total.dtype, total.tensors) for total in found.dtypes] == [("float16", 1130)]
    assert inspect(mini / "vae").what.role == "VAE only"
    assert inspect(mini / "text_encoder").what.role == "text encoder only"
    shutil.copytree(mini / "unet", tmp_path / "unet")
    config = json.loads((mini / "unet" / "config.json").read_text())
    for change, family in (
        ({"in_channels": 9}, SD1),
        ({"use_linear_projection": True}, SD2),
        ({"addition_embed_type": "text_time", "cross_attention_dim": 2048}, XL),
        ({"addition_embed_type": "text_time", "cross_attention_dim": 1280}, REFINER),
        ({"_class_name": "FluxTransformer2DModel"}, FLUX),
        ({"_class_name": "SD3Transformer2DModel"}, SD3),
    ):
        (tmp_path / "unet" / "config.json").write_text(json.dumps(config | change))
        found = inspect(tmp_path / "unet")
        assert found.what.family == family
        assert found.what.inpainting == (change.get("in_channels") == 9)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": ["x"], "in_channels": "many"}))
    assert inspect(tmp_path / "unet").what.why == "['x'] is not supported"
    with pytest.raises(ModelError, match=r"is no diffusers folder: it has no model_index\.json; it contains unet"):
        inspect(tmp_path)


def test_the_verb_returns_an_inspection_and_the_command_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "style.safetensors", KOHYA, **{"modelspec.title": "A\nstyle"})
    assert isinstance(models.inspect(path), Inspection)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        app(["inspect", str(path)])
    assert capsys.readouterr().out.splitlines() == [
        "                 style.safetensors",
        "what             LoRA",
        "family           Stable Diffusion 1.x",
        "detail           ranks 8 to 16",
        "file             safetensors, kohya naming",
        "parts            UNet or transformer, text encoder",
        "precision        float16 (4 tensors)",
        "size             4 tensors, 47.1 kB",
        "modelspec.title  'A\\nstyle'",
    ]


def test_the_command_line_needs_no_torch_and_refuses_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", unet())
    page = tmp_path / "page.ckpt"
    page.write_bytes(b"<!DOCTYPE html><html>")
    code = """
import sys
from fastdb.cli import app
for file, wanted in ((sys.argv[1], 0), (sys.argv[2], 2)):
    try:
        app(["inspect", file])
    except SystemExit as ended:
        assert (ended.code or 0) == wanted, ended.code
assert not {"torch", "numpy", "safetensors", "diffusers"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(path), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "UNet only" in done.stdout
    assert done.stderr.splitlines() == [
        f"error: {page}: the file is a web page, such as a login, confirmation or error page, not a model. "
        "Open the link in a browser and follow the page."
    ]
