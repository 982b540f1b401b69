"""Configurations for a model in one file, from which libraries build modules with the tensors of the file."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import diffusers
import transformers

from fastdb.errors import ModelError
from fastdb.formats.safetensors_file import Entry
from fastdb.models import diffusers_configs as room
from fastdb.models.diffusers_configs import configs, lay_out
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.export import Planned
from fastdb.models.family import FAMILIES
from fastdb.models.layouts.tables import layout_of

sys.path.insert(0, str(Path(__file__).parent))
import original_names
import real_models

SHARED = Path(__file__).parents[3] / "shared" / "models" / "clip_tokenizer"
LAYOUTS = ["sd1", "sd1-inpainting", "sd2", "sdxl"]


def built(config: dict[str, Any]) -> Any:
    """Build the module of a configuration, on the meta device."""
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        return getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))


def planned(part: str, shapes: dict[str, tuple[int, ...]]) -> list[Planned]:
    return [Planned(Entry(name, torch.float16, shape), part, lambda: torch.zeros(1)) for name, shape in shapes.items()]


@pytest.mark.parametrize("family", LAYOUTS)
def test_libraries_build_the_tensors_of_an_original_file(family: str) -> None:
    """Compare every key and shape at full size with a list of the originals that is independent of diffusers."""
    files, layout = configs(FAMILIES[family]), layout_of(family)
    shapes = {
        part: {name: tuple(tensor.shape) for name, tensor in built(files[f"{part}/config.json"]).state_dict().items()}
        for part in layout.parts
    }
    made = {move.line.original: move.shapes[0] for move in layout.to_original(shapes)}
    wanted = original_names.whole(family)
    assert made == {name: shape for name, shape in wanted.items() if name in made}
    assert len(made) == {"sd1": 1130, "sd1-inpainting": 1130, "sd2": 1214, "sdxl": 2513}[family]


@pytest.mark.parametrize("family", LAYOUTS)
def test_settings_equal_those_of_a_real_model(family: str) -> None:
    """Compare settings that no shape shows (heads, activations, attention blocks) with models built by hand."""
    files = configs(FAMILIES[family])
    with torch.device("meta"):
        real = real_models.build(family)
    for part, model in real.items():
        ours, theirs = built(files[f"{part}/config.json"]).config, model.config
        keys = ("attention_head_dim", "down_block_types", "up_block_types", "use_linear_projection", "hidden_act")
        for key in (*keys, "num_attention_heads", "addition_embed_type", "transformer_layers_per_block"):
            if part != "vae" or "block" in key:
                one, other = (getattr(config, key, None) for config in (ours, theirs))
                assert (list(one) if isinstance(one, list | tuple) else one) == (
                    list(other) if isinstance(other, list | tuple) else other
                ), (part, key)


def test_v_prediction_is_in_the_scheduler_and_enlarges_sd2() -> None:
    small, large = configs(FAMILIES["sd2"]), configs(FAMILIES["sd2"], v_prediction=True)
    assert [files["scheduler/scheduler_config.json"]["prediction_type"] for files in (small, large)] == [
        "epsilon",
        "v_prediction",
    ]
    assert [files["unet/config.json"]["sample_size"] for files in (small, large)] == [64, 96]
    assert configs(FAMILIES["sd1"], v_prediction=True)["unet/config.json"]["sample_size"] == 64


def vocabulary(name: str) -> bytes:
    if not SHARED.is_dir():
        pytest.skip("needs CLIP's vocabulary, which is not part of the project")
    return (SHARED / name).read_bytes()


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0. BPE:DeprecationWarning")  # transformers' own call
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_folder_with_clips_vocabulary_tokenizes(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_vocabulary", vocabulary)
    files = configs(FAMILIES[family])
    parts = {
        part: planned(
            part,
            {name: tuple(tensor.shape) for name, tensor in built(files[f"{part}/config.json"]).state_dict().items()},
        )
        for part in layout_of(family).parts
    }
    lay_out(tmp_path / "folder", FAMILIES[family], parts)
    tokenizers = sorted((tmp_path / "folder").glob("tokenizer*"))
    assert len(tokenizers) == (2 if family == "sdxl" else 1)
    for folder in tokenizers:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a photo of a dog", padding="max_length", max_length=77).input_ids
        assert ids[:7] == [49406, 320, 1125, 539, 320, 1929, 49407]
        padding = 49407 if folder.name == "tokenizer" and family != "sd2" else 0
        assert set(ids[7:]) == {padding}
    if family == "sd1":
        for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
            (tmp_path / "folder" / part / f"{name}.safetensors").touch()
        (tmp_path / "folder" / "text_encoder" / "model.safetensors").touch()
        opened = open_base_model(tmp_path / "folder")
        assert (opened.sample_size, opened.latent_scale, opened.tokens) == (512, 0.18215, 77)


def test_a_model_of_other_sizes_is_refused_without_like(tmp_path: Path, mini: Path) -> None:
    with torch.device("meta"):
        real = real_models.build("sd1", "narrow")
    parts = {
        part: planned(part, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        for part, model in real.items()
    }
    with pytest.raises(ModelError, match=r"the configurations of .* are for other sizes; its unet has .* with --like"):
        lay_out(tmp_path / "folder", FAMILIES["sd1"], parts)
    assert not (tmp_path / "folder").exists()
    other = shutil.copytree(mini, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"its unet has .*, and the file "):
        lay_out(tmp_path / "folder", FAMILIES["sd1"], parts, other)
