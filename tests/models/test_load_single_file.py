"""Loading of an original file; weights and outputs equal those of diffusers to the bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from fastdb.errors import ModelError
from fastdb.models.convert import convert
from fastdb.models.diffusers_folder import read_config
from fastdb.models.layouts.layout import ema_key
from fastdb.models.layouts.tables import layout_of
from fastdb.models.loading import load_single_file

sys.path.insert(0, str(Path(__file__).parent))
import real_models

MODELS = ["mini", "sd1", "sd1-inpainting", "sd2", "sdxl"]
UNET = "model.diffusion_model."


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("folders") / request.param
    return ("sd1", mini) if request.param == "mini" else (request.param, real_models.save(request.param, mini, folder))


@pytest.fixture(scope="module")
def single_file(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(mini, tmp_path_factory.mktemp("single") / "mini.safetensors", dtype="fp32").path


def configs_of(family: str, folder: Path) -> dict[str, dict[str, Any]]:
    return {part: read_config(folder / part / "config.json") for part in layout_of(family).parts}


def outputs(parts: dict[str, Any]) -> list[Any]:
    """Return the output of each part for the same input."""
    draw = torch.Generator().manual_seed(1)
    unet, dtype = parts["unet"], parts["unet"].dtype
    latent = torch.randn(1, unet.config["in_channels"], 8, 8, generator=draw).to(dtype)
    text = torch.randn(1, 77, unet.config["cross_attention_dim"], generator=draw).to(dtype)
    more = {}
    if "text_encoder_2" in parts:
        pooled = torch.randn(1, parts["text_encoder_2"].config.projection_dim, generator=draw).to(dtype)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(1, 6)}}
    words = torch.arange(77)[None]
    with torch.no_grad():
        found = [unet(latent, 500, text, **more).sample, parts["vae"].decode(latent[:, :4]).sample]
        for part in ("text_encoder", "text_encoder_2"):
            if part in parts:
                found.append(parts[part](words, output_hidden_states=True).hidden_states[-1])
    return found


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_modules_equal_those_of_diffusers(model: tuple[str, Path], tmp_path: Path, ending: str) -> None:
    family, folder = model
    file = convert(folder, tmp_path / f"a.{ending}", dtype="fp32").path
    mine = load_single_file(file, configs_of(family, folder))
    more = {} if family == "sdxl" else {"safety_checker": None}
    theirs = real_models.pipeline(family).from_single_file(
        str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32, **more
    )
    assert tuple(mine) == layout_of(family).parts
    for part, module in mine.items():
        other = getattr(theirs, part)
        for weight in other.parameters():
            weight.data = weight.data.clone()  # at the odd addresses of a mapped file some kernels round otherwise
        states = module.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), part
        assert type(module) is type(other)
        assert not module.training
        assert not any(buffer.is_meta for buffer in module.buffers())
    both = outputs(mine), outputs({part: getattr(theirs, part) for part in mine})
    assert len(both[0]) == len(mine)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*both, strict=True))
    assert all(bool(output.std() > 0) for output in both[0])


def test_weights_are_copies_of_the_requested_type(single_file: Path, mini: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(single_file.read_bytes())
    for dtype in (torch.float32, torch.bfloat16):
        parts = load_single_file(file, {"vae": read_config(mini / "vae" / "config.json")}, dtype=dtype)
        assert list(parts) == ["vae"]
        assert {weight.dtype for weight in parts["vae"].parameters()} == {dtype}
    state = load_single_file(file, {"vae": read_config(mini / "vae" / "config.json")})["vae"].state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    with file.open("r+b") as opened:
        opened.seek(1 << 20)
        opened.write(b"\xff" * (file.stat().st_size - (1 << 20)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_running_averages_are_loaded_on_request(single_file: Path, mini: Path, tmp_path: Path) -> None:
    tensors = load_file(single_file)
    averages = {ema_key(name): tensors[name] + 1 for name in tensors if name.startswith(UNET)}
    save_file(tensors | averages, tmp_path / "ema.safetensors")
    config = {"unet": read_config(mini / "unet" / "config.json")}
    plain, averaged = (
        load_single_file(tmp_path / "ema.safetensors", config, averaged=wanted)["unet"].state_dict()
        for wanted in (False, True)
    )
    assert all(torch.equal(averaged[name], plain[name] + 1) for name in plain)


def test_a_file_of_another_model_is_refused(single_file: Path, mini: Path, tmp_path: Path) -> None:
    configs = configs_of("sd1", mini)
    wider = configs["vae"] | {"block_out_channels": [2 * width for width in configs["vae"]["block_out_channels"]]}
    with pytest.raises(ModelError, match=r"has the shape .* Restore the configuration that belongs"):
        load_single_file(single_file, {"vae": wider})
    with pytest.raises(ModelError, match=r"a Stable Diffusion 1\.x has no part text_encoder_2\. Choose from unet"):
        load_single_file(single_file, {"text_encoder_2": configs["text_encoder"]})
    tensors = load_file(single_file)
    name = f"{UNET}out.2.weight"
    for value, dtype, line in (
        (float("nan"), torch.float32, "this tensor of the unet contains NaN or infinity"),
        (1e5, torch.float16, r"this tensor of the unet contains 1e\+05, and the largest number of fp16 is 65504"),
    ):
        save_file(tensors | {name: torch.full_like(tensors[name], value)}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match=line):
            load_single_file(tmp_path / "a.safetensors", {"unet": configs["unet"]}, dtype=dtype)
    with pytest.raises(ModelError, match="it is a UNet only, not a whole model"):
        load_single_file(next((mini / "unet").glob("*.safetensors")), configs)
