"""Layouts with the weights of narrow models of every family, with diffusers as an independent reader."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from fastdb.errors import ModelError
from fastdb.models.diffusers_folder import PARTS, WEIGHTS, open_base_model
from fastdb.models.family import FAMILIES
from fastdb.models.layouts.layout import modern_name
from fastdb.models.layouts.tables import layout_of
from fastdb.models.loading import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import original_names
import real_models

COUNTS = {"sd1": 1130, "sd1-inpainting": 1130, "sd2": 1214, "sdxl": 2513}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
SECOND = "conditioner.embedders.1.model"

State = dict[str, Any]


@dataclass
class Narrow:
    """A narrow model with random weights: its parts, their files in a folder, and its original file."""

    family: str
    parts: dict[str, Any]
    states: dict[str, State]
    """Tensors of the folder, by the names in its files."""
    configs: Path
    """The folder without the weights."""
    file: Path
    pipeline: Any
    """Pipeline that diffusers loads from the file."""


@pytest.fixture(scope="module", params=list(COUNTS))
def narrow(request: pytest.FixtureRequest, mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    parts = real_models.build(family, "narrow")
    for part in parts.values():
        part.eval()
        for name, weight in part.named_parameters():  # all random: a norm that took another's place would show
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(weight, around, 0.1)
    save(family, parts, mini, folder)
    states = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in parts}
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    target = folder.parent / f"{folder.name}.safetensors"
    save_file(joined(family, states), target, {"format": "pt"})
    yield Narrow(family, parts, states, folder, target, read(family, target, folder))
    shutil.rmtree(folder)
    target.unlink()


def save(family: str, parts: dict[str, Any], mini: Path, folder: Path) -> None:
    """A diffusers folder with the tokenizer of mini."""
    tokenizers = {"tokenizer": load_tokenizer(mini)}
    if family == "sdxl":
        tokenizers["tokenizer_2"] = tokenizers["tokenizer"]
    else:
        tokenizers |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    getattr(diffusers, PIPELINES[family])(**parts, **tokenizers, scheduler=scheduler).save_pretrained(folder)


def joined(family: str, states: dict[str, State]) -> State:
    """The original file of a model, tensor by tensor."""
    shapes = {part: {name: tuple(t.shape) for name, t in state.items()} for part, state in states.items()}
    return {
        move.line.original: move.line.join(*(states[move.line.part][name] for name in move.stored))
        for move in layout_of(family).to_original(shapes)
    }


def split(family: str, file: State) -> dict[str, State]:
    """The parts of an original file, tensor by tensor."""
    parts: dict[str, State] = {part: {} for part in layout_of(family).parts}
    for move in layout_of(family).to_diffusers({key: tuple(tensor.shape) for key, tensor in file.items()}):
        parts[move.line.part] |= zip(move.line.names, move.line.split(file[move.stored[0]]), strict=True)
    return parts


def read(family: str, file: Path, configs: Path) -> Any:
    """Return the pipeline that diffusers loads from the file by its own tables; the folder contains no weights."""
    kind = getattr(diffusers, PIPELINES[family])
    more = {} if family == "sdxl" else {"safety_checker": None}
    pipeline = kind.from_single_file(str(file), config=str(configs), local_files_only=True, **more)
    for part in layout_of(family).parts:
        for weight in getattr(pipeline, part).parameters():
            weight.data = weight.data.clone()  # at the odd addresses of a mapped file some kernels round otherwise
    return pipeline


def test_the_file_has_the_keys_and_shapes_of_a_narrow_original(narrow: Narrow) -> None:
    found = {key: tuple(tensor.shape) for key, tensor in load_file(narrow.file).items()}
    account = original_names.whole(narrow.family, "narrow")
    assert len(found) == COUNTS[narrow.family]
    assert found == {key: shape for key, shape in account.items() if key in found}


def test_every_tensor_survives_the_round_trip(narrow: Narrow) -> None:
    back = split(narrow.family, load_file(narrow.file))
    assert set(back) == set(narrow.states)
    for part, state in narrow.states.items():
        expected = {modern_name(part, name): tensor for name, tensor in state.items()}
        assert set(back[part]) == set(expected)
        assert [name for name, tensor in expected.items() if not torch.equal(back[part][name], tensor)] == []
    again = joined(narrow.family, back)
    assert all(torch.equal(again.pop(key), tensor) for key, tensor in load_file(narrow.file).items())
    assert not again


def test_diffusers_reads_the_file_as_the_same_model(narrow: Narrow) -> None:
    for part, source in narrow.parts.items():
        found, expected = getattr(narrow.pipeline, part).state_dict(), source.state_dict()
        assert set(found) == set(expected)
        assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == [], part


@torch.no_grad()
def computed(parts: dict[str, Any]) -> State:
    """Return outputs of a model's parts for fixed noise and text."""
    numbers = torch.Generator().manual_seed(1)
    noise = torch.randn(2, parts["unet"].config.in_channels, 8, 8, generator=numbers)
    words = torch.randint(0, 792, (2, 77), generator=numbers)
    words[:, -1] = 793  # the end, where the pooled state is read
    made, added = {}, {}
    for part in [name for name in parts if name.startswith("text_encoder")]:
        said = parts[part](words)
        made[part] = said.last_hidden_state
        made[f"{part}, pooled"] = said.text_embeds if part == "text_encoder_2" else said.pooler_output
        if part == "text_encoder_2":
            times = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, 6)
            added = {"text_embeds": said.text_embeds, "time_ids": times}
    text = torch.cat([tensor for name, tensor in made.items() if "pooled" not in name], dim=-1)
    made["unet"] = parts["unet"](noise, torch.tensor([999, 1]), text, added_cond_kwargs=added).sample
    made["picture"] = parts["vae"].decode(noise[:, :4]).sample
    made["latents"] = parts["vae"].encode(made["picture"]).latent_dist.mean
    return made


def test_the_loaded_model_computes_the_same(narrow: Narrow) -> None:
    expected = computed(narrow.parts)
    found = computed({part: getattr(narrow.pipeline, part) for part in narrow.parts})
    assert len(expected) == (7 if narrow.family == "sdxl" else 5)
    for name, tensor in expected.items():
        assert torch.isfinite(tensor).all(), name
        assert float(tensor.std()) > 1e-3, name
        assert torch.equal(found[name], tensor), name


def test_optional_tensors_in_the_file_change_nothing(narrow: Narrow, tmp_path: Path) -> None:
    """Published files contain position numbers and, for SD 2, unused layers."""
    state = load_file(narrow.file)
    account = original_names.whole(narrow.family, "narrow")
    spare = sorted(set(account) - set(state))
    assert len(spare) == {"sd2": 14, "sdxl": 2}.get(narrow.family, 1)
    for key in spare:
        ids = key.endswith("position_ids")
        state[key] = torch.arange(77)[None] if ids else torch.full(account[key], 7.0)
    back = split(narrow.family, state)
    for part, source in narrow.states.items():
        assert all(torch.equal(back[part][modern_name(part, name)], tensor) for name, tensor in source.items())
    save_file(state, tmp_path / "more.safetensors", {"format": "pt"})
    pipeline = read(narrow.family, tmp_path / "more.safetensors", narrow.configs)
    assert len(pipeline.text_encoder.state_dict()) == len(narrow.states["text_encoder"])
    for part, source in narrow.parts.items():
        found = getattr(pipeline, part).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("narrow", ["sdxl"], indirect=True)
def test_a_projection_must_be_transposed(narrow: Narrow, tmp_path: Path) -> None:
    """It is square, so only its numbers differ: without the transposition the file is another model."""
    state, mine = load_file(narrow.file), narrow.parts["text_encoder_2"].text_projection.weight
    assert torch.equal(state[f"{SECOND}.text_projection"], mine.t())
    assert not torch.allclose(mine, mine.t())
    assert torch.equal(narrow.pipeline.text_encoder_2.text_projection.weight, mine)
    state[f"{SECOND}.text_projection"] = mine.detach().clone()
    save_file(state, tmp_path / "wrong.safetensors", {"format": "pt"})
    wrong = read(narrow.family, tmp_path / "wrong.safetensors", narrow.configs).text_encoder_2
    assert not torch.equal(wrong.text_projection.weight, mine)


def test_a_folder_without_the_clip_prefix_gives_the_same_file(narrow: Narrow) -> None:
    """transformers 5 writes such folders; diffusers needs the prefix in the file."""
    bare = {part: dict(state) for part, state in narrow.states.items()}
    bare["text_encoder"] = {name.removeprefix("text_model."): t for name, t in bare["text_encoder"].items()}
    prefixed = bare | {"text_encoder": {f"text_model.{name}": t for name, t in bare["text_encoder"].items()}}
    assert bare["text_encoder"].keys() != prefixed["text_encoder"].keys()
    expected = load_file(narrow.file)
    for states in (bare, prefixed):
        found = joined(narrow.family, states)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_folder_opens_as_a_base_model_if_its_family_can_be_trained(narrow: Narrow, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(narrow.configs, folder)
    for part in PARTS:
        (folder / part / f"{WEIGHTS[part]}.safetensors").touch()  # only its existence is checked
    if not FAMILIES[narrow.family].obstacle:
        assert open_base_model(folder).cross_attention_dim == 24
    else:
        with pytest.raises(ModelError, match=r"not a StableDiffusionPipeline|its UNet"):
            open_base_model(folder)
    assert not FAMILIES["sd1"].obstacle
