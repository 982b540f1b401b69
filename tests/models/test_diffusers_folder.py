"""Opening, refusal and loading of base models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import ModelError
from fastdb.models.diffusers_folder import PARTS, fingerprint, open_base_model

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from fastdb.models import loading


@pytest.fixture
def model(mini: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mini, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_opening_reads_the_configurations(model: Path) -> None:
    edit(model / "vae" / "config.json", scaling_factor=0.5)
    edit(model / "unet" / "config.json", sample_size=16)
    opened = open_base_model(model)
    assert opened.folder == model
    assert (opened.prediction_type, opened.latent_scale, opened.vae_factor) == ("epsilon", 0.5, 8)
    assert (opened.cross_attention_dim, opened.latent_channels, opened.tokens, opened.sample_size) == (64, 4, 77, 128)
    tokenizer = loading.load_tokenizer(model)
    assert opened.vocabulary == len(tokenizer)


def test_opening_needs_no_torch(mini: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fastdb.models.diffusers_folder import fingerprint, open_base_model;"
        f"open_base_model(Path({str(mini)!r})); fingerprint(Path({str(mini)!r}));"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_the_fingerprint_follows_the_weights(model: Path, mini: Path) -> None:
    assert fingerprint(model) == fingerprint(mini)
    assert len(fingerprint(model)) == 64
    edit(model / "model_index.json", comment="x")
    assert fingerprint(model) == fingerprint(mini)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint(model) != fingerprint(mini)


def only_pickle(model: Path) -> None:
    for part in PARTS:
        file = next((model / part).glob("*.safetensors"))
        file.rename(file.with_name("pytorch_model.bin"))


def larger_tokenizer(model: Path) -> None:
    file = model / "tokenizer" / "vocab.json"
    edit(file, **{"surplus</w>": len(json.loads(file.read_text()))})


def added_token(model: Path) -> None:
    (model / "tokenizer" / "added_tokens.json").write_text('{"<sks>": 49408}')


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "no such folder"),
    "no index": (
        lambda m: (m / "model_index.json").unlink(),
        "has no model_index.json; it contains scheduler",
    ),
    "sdxl": (
        lambda m: edit(m / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "is a StableDiffusionXLPipeline, not a StableDiffusionPipeline",
    ),
    "no vae": (
        lambda m: shutil.rmtree(m / "vae"),
        "the vae is missing; it contains .*scheduler, text_encoder, tokenizer, unet",
    ),
    "no config": (lambda m: (m / "unet" / "config.json").unlink(), "config.json is missing"),
    "half a config": (lambda m: (m / "unet" / "config.json").write_text('{"act'), "contains invalid JSON"),
    "list": (lambda m: (m / "unet" / "config.json").write_text("[]"), "contains no JSON object"),
    "no number": (
        lambda m: edit(m / "unet" / "config.json", cross_attention_dim="wide"),
        "missing or wrong value",
    ),
    "other vae": (lambda m: edit(m / "vae" / "config.json", _class_name="VQModel"), "is a VQModel, not a Autoencoder"),
    "sd 2": (
        lambda m: edit(m / "unet" / "config.json", use_linear_projection=True),
        "has the linear projections",
    ),
    "inpainting": (lambda m: edit(m / "unet" / "config.json", in_channels=9), "has 9 input channels"),
    "pickle": (only_pickle, r"only as pickle \(pytorch_model.bin\).*safe_serialization"),
    "no weights": (
        lambda m: (m / "text_encoder" / "model.safetensors").unlink(),
        "text_encoder has no model.safetensors; it contains config.json",
    ),
    "larger tokenizer": (larger_tokenizer, "the tokenizer has token"),
    "added token": (added_token, "the tokenizer has token 49408"),
    "no tokenizer": (
        lambda m: [f.unlink() for f in (m / "tokenizer").iterdir() if "config" not in f.name],
        "has neither vocab.json nor tokenizer.json; it contains tokenizer_config.json",
    ),
    "narrow text": (lambda m: edit(m / "text_encoder" / "config.json", hidden_size=32), "32 wide, the UNet expects 64"),
    "prediction": (
        lambda m: edit(m / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "the prediction type 'sample'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_with_its_fault(model: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(model)
    with pytest.raises(ModelError, match=message) as caught:
        open_base_model(model)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_file_is_no_base_model(mini: Path) -> None:
    with pytest.raises(ModelError, match="is a single file"):
        open_base_model(mini / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("which", ["mini", "single"])
def test_loading_equals_that_of_the_libraries(which: str, request: pytest.FixtureRequest) -> None:
    """Files in half and in single precision; in memory both are single."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder: Path = request.getfixturevalue(which)
    pairs = [
        (loading.load_part(folder, "unet"), UNet2DConditionModel.from_pretrained(folder / "unet")),
        (loading.load_part(folder, "vae"), AutoencoderKL.from_pretrained(folder / "vae")),
        (loading.load_part(folder, "text_encoder"), CLIPTextModel.from_pretrained(folder / "text_encoder")),
    ]
    for ours, theirs in pairs:
        assert not ours.training
        assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
        assert not any(b.is_meta for b in ours.buffers())
        state = theirs.state_dict()
        assert set(state) == set(ours.state_dict())
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    numbers = torch.arange(77)[None]
    assert torch.equal(pairs[2][0](numbers)[0], pairs[2][1](numbers)[0])
    assert type(loading.load_scheduler(folder)).__name__ == "PNDMScheduler"


def test_the_text_encoder_loads_with_and_without_prefix_and_position_ids(model: Path) -> None:
    file = model / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    assert all(name.startswith("text_model.") for name in weights)
    before = loading.load_part(model, "text_encoder")(torch.arange(77)[None])[0]
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    for other in (bare, weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]}):
        save_file(other, file)
        assert torch.equal(loading.load_part(model, "text_encoder")(torch.arange(77)[None])[0], before)


def test_old_vae_names_and_fp16_variants_load(single: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(single, tmp_path / "model"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {}
    for name, tensor in load_file(file).items():
        for modern, ancient in old.items():
            name = name.replace(f".attentions.0.{modern}.", f".attentions.0.{ancient}.")
        weights[name] = tensor.half()
    assert sum("proj_attn" in name for name in weights) == 4
    wanted = loading.load_part(model, "vae").state_dict()
    assert not torch.equal(wanted["quant_conv.weight"], wanted["quant_conv.weight"].half().float())
    file.unlink()
    save_file(weights, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    open_base_model(model)
    found = loading.load_part(model, "vae").state_dict()
    assert all(torch.equal(found[name], wanted[name].half().float()) for name in wanted)
    assert loading.load_part(model, "vae", torch.float16).dtype == torch.float16


def test_loaded_weights_are_copies(model: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    unet = loading.load_part(model, "unet")
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(1)
    file.write_bytes(b"gone")
    assert before != b"gone"
    assert torch.isfinite(unet.conv_in.weight).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w["mid_block.resnets.0.conv1.weight"].view(-1)[7:8].fill_(float("nan")), "contains NaN or infinity"),
        (lambda w: w.pop("conv_in.bias"), "lacks the tensor conv_in.bias"),
        (lambda w: w.update(surplus=torch.zeros(1)), "has the unexpected tensor surplus"),
        (lambda w: w.update({"conv_in.bias": torch.zeros(33)}), r"shape \[33\], not \[32\]"),
    ],
)
def test_bad_weights_are_refused(model: Path, spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    spoil(weights)
    save_file(weights, file)
    with pytest.raises(ModelError, match=message):
        loading.load_part(model, "unet")


def test_a_truncated_weight_file_is_refused(model: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="is damaged"):
        loading.load_part(model, "unet")
