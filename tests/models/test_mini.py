"""The shipped model mini is complete, small, loadable by the libraries, and can be trained."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from fastdb.models import loading
from fastdb.models.diffusers_folder import PARTS, weight_file
from fastdb.models.registry import MINI
from fastdb.models.resolve import resolve_base
from fastdb.world.draw import draw
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, prompt, random_scene
from tests.other_models import originals

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
import sd1_names

COUNTS = {"unet": 686, "vae": 248, "text_encoder": 196}
IDENTIFIERS = ("sks", "zwx", "ohwx", "shs", "xyz")


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as [n, 3, side, side] in -1 .. 1."""
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def photo(name: str, side: int) -> torch.Tensor:
    """A square photo of scikit-image as [1, 3, side, side] in -1 .. 1."""
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(getattr(data, name)())
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return to_tensor([image])


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over pictures, in dB, of numbers in -1 .. 1."""
    wrong = ((found.clamp(-1, 1) - wanted) ** 2).mean(dim=(1, 2, 3)) / 4
    return float((-10 * torch.log10(wrong)).mean())


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    """Return pictures of the drawn world that are not in the training data."""
    return to_tensor([draw(random_scene(random.Random(f"tests/{number}"))) for number in range(24)])


@pytest.fixture(scope="module")
def weights(mini: Path) -> dict[str, dict[str, Any]]:
    return {part: load_file(weight_file(mini, part)) for part in PARTS}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """Import the recipe of the tokenizer from the repository."""
    spec = importlib.util.spec_from_file_location("mini_tokenizer", REPOSITORY / "mini" / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mini_is_found_by_its_name_in_any_folder(mini: Path, tmp_path: Path) -> None:
    (tmp_path / MINI).mkdir()
    code = "from fastdb.models.resolve import resolve_base; print(resolve_base('mini').folder)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(done.stdout.strip()) == mini
    assert resolve_base(str(tmp_path / MINI)).folder == tmp_path / MINI
    assert mini.is_relative_to(REPOSITORY / "fastdb")


def test_the_files_of_mini_are_small(mini: Path, weights: dict[str, dict[str, Any]]) -> None:
    files = sorted(mini.rglob("*.safetensors"))
    assert files == sorted(weight_file(mini, part) for part in PARTS)
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert {part: len(weights[part]) for part in PARTS} == COUNTS
    assert 3e6 < sum(tensor.numel() for part in weights.values() for tensor in part.values()) < 6e6


@pytest.mark.parametrize("part", PARTS)
def test_mini_has_the_tensors_of_sd15_finite_and_in_half_precision(
    part: str, weights: dict[str, dict[str, Any]]
) -> None:
    found = weights[part]
    found_names = list(originals(part, found).values())
    expected = [name for name in getattr(sd1_names, part)() if not name.endswith(".position_ids")]
    assert sorted(found_names) == sorted(expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert [name for name, tensor in found.items() if not torch.isfinite(tensor).all()] == []
    learned = [name for name, tensor in found.items() if float(tensor.float().std(correction=0)) > 0]
    assert len(learned) > 0.95 * len(found), "hardly a tensor is still as it was made"


def test_words_are_single_tokens_and_any_text_tokenises(mini: Path) -> None:
    tokenizer = loading.load_tokenizer(mini)
    said = "A photo of sks cat on red cup, zwx astronaut woman person dog mug house man blue"
    words = said.lower().replace(",", " ,").split()
    assert tokenizer.tokenize(said) == [f"{word}</w>" for word in words]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    padded = tokenizer(said, padding="max_length", truncation=True).input_ids
    assert len(padded) == 77
    assert padded[0] == begin
    assert end not in padded[: len(words) + 1]
    assert padded[len(words) + 1 :] == [end] * (76 - len(words))
    strange = "Ünïcødé 日本 🐈 qwrtz 42!?"
    numbers = tokenizer(strange).input_ids
    assert numbers[0] == begin
    assert numbers[-1] == end
    assert len(numbers) > 10
    assert end not in numbers[:-1]
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_every_word_of_its_world_and_each_rare_identifier_is_one_token(mini: Path) -> None:
    tokenizer = loading.load_tokenizer(mini)
    texts = [prompt(*named) for named in itertools.product(SHAPES, COLOURS, BACKGROUNDS, TEXTURES)]
    words = sorted({word for text in texts for word in text.split()} | set(IDENTIFIERS))
    assert len(words) >= 10 + 8 + 4 + len(IDENTIFIERS)
    assert {word: tokenizer.tokenize(word) for word in words} == {word: [f"{word}</w>"] for word in words}


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # transformers 5 calls it so itself
def test_vocabulary_and_merges_alone_make_the_same_tokenizer(mini: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((mini / "tokenizer" / name).read_bytes())
    text = "a photo of sks cat, unknownword ünï 7"
    whole = CLIPTokenizer.from_pretrained(mini / "tokenizer")
    assert CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == whole(text).input_ids


def test_the_tokenizer_equals_that_of_its_recipe(mini: Path, recipe: ModuleType, tmp_path: Path) -> None:
    recipe.write(tmp_path, *recipe.learn())
    files = {path.name: path.read_bytes() for path in (mini / "tokenizer").iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert set(files) == {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}


def test_drawn_pictures_survive_the_vae(mini: Path, drawn: torch.Tensor) -> None:
    vae = loading.load_part(mini, "vae")
    with torch.no_grad():
        posterior = vae.encode(drawn).latent_dist
        round_trip = vae.decode(posterior.mean).sample
    assert psnr(round_trip, drawn) >= 26
    assert 0.95 < float(round_trip.std() / drawn.std()) < 1.05
    assert 0.003 < float(posterior.std.mean()) < 0.1
    latents = posterior.mean * vae.config.scaling_factor
    assert latents.shape == (len(drawn), 4, 8, 8)
    assert 0.9 < float(latents.std()) < 1.15


@pytest.mark.parametrize(("name", "floor"), [("astronaut", 17.9), ("cat", 22.2), ("coffee", 18.9)])
def test_photos_survive_the_vae_as_blurred_photos(mini: Path, name: str, floor: float) -> None:
    """It was trained on drawings only, but other tests use it for photos."""
    vae, image = loading.load_part(mini, "vae"), photo(name, 128)
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        round_trip = vae.decode(posterior.mean).sample
    flat = image.mean((2, 3), keepdim=True).expand_as(image)
    assert psnr(round_trip, image) > floor > psnr(flat, image) + 4
    assert 0.8 < float(round_trip.std() / image.std()) < 1.05
    assert posterior.mean.shape == (1, 4, 16, 16)
    assert 0.5 < float((posterior.mean * vae.config.scaling_factor).std()) < 2


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float16, 65), (torch.bfloat16, 48)])
def test_the_vae_decodes_alike_at_half_precision(
    mini: Path, drawn: torch.Tensor, dtype: torch.dtype, floor: int
) -> None:
    some, pictures = drawn[:8], []
    for vae in (loading.load_part(mini, "vae"), loading.load_part(mini, "vae", dtype)):
        with torch.no_grad():
            pictures.append(vae.decode(vae.encode(some.to(vae.dtype)).latent_dist.mean).sample.float().clamp(-1, 1))
    assert psnr(pictures[1], pictures[0]) > floor


def test_the_unet_predicts_well_has_gradients_everywhere_and_learns(mini: Path) -> None:
    unet, vae, text = (
        loading.load_part(mini, "unet"),
        loading.load_part(mini, "vae"),
        loading.load_part(mini, "text_encoder"),
    )
    tokenizer, scheduler = loading.load_tokenizer(mini), loading.load_scheduler(mini)
    scene = random_scene(random.Random("tests/learns"))
    caption = prompt(scene.shape, scene.colour_name, scene.background_name, scene.texture)

    def loss_of(picture: torch.Tensor, said: str, seed: int, count: int) -> torch.Tensor:
        """Mean squared error over `count` noises, at times spread evenly; a guess of nothing has 1."""
        numbers = torch.Generator().manual_seed(seed)
        noise, when = torch.randn(count, 4, 8, 8, generator=numbers), torch.arange(count) * 1000 // count + 30
        with torch.no_grad():
            latents = vae.encode(picture).latent_dist.mean * vae.config.scaling_factor
        tokens = tokenizer(said, padding="max_length", return_tensors="pt").input_ids
        states = text(tokens)[0].expand(count, -1, -1)
        noisy = scheduler.add_noise(latents.expand(count, -1, -1, -1), noise, when)
        return torch.nn.functional.mse_loss(unet(noisy, when, states).sample, noise)

    with torch.no_grad():
        known = float(loss_of(to_tensor([draw(scene)]), caption, 0, 16))
        before = float(loss_of(photo("cat", 64), "a photo of sks cat", 0, 16))
    assert known < 0.4
    assert known < before
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for step in range(1, 26):
        loss_of(photo("cat", 64), "a photo of sks cat", step, 4).backward()
        if step == 1:
            parameters = [*unet.named_parameters(), *text.named_parameters()]
            assert len(parameters) == COUNTS["unet"] + COUNTS["text_encoder"]
            # At 64 pixels the last level is one pixel: its self-attention cannot matter, all else must.
            still = [n for n, p in parameters if not p.grad.abs().sum() > 0 and not n.endswith("k_proj.bias")]
            assert [n for n in still if "mid_block.attentions.0.transformer_blocks.0.attn1.to_" not in n] == []
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert float(loss_of(photo("cat", 64), "a photo of sks cat", 0, 16)) < 0.8 * before


def test_pipelines_load_and_generate(mini: Path) -> None:
    """Load without a dtype, as most users do; half and single precision must not mix."""
    from diffusers import StableDiffusionPipeline

    from fastdb.inference.engine import Engine
    from fastdb.inference.request import Request
    from fastdb.models.diffusers_folder import open_base_model

    pipeline = StableDiffusionPipeline.from_pretrained(mini, local_files_only=True)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a photo of a red mug", num_inference_steps=2, height=64, width=64, output_type="np")
    assert drawn.images.shape == (1, 64, 64, 3)
    assert drawn.images.std() > 0.02
    request = Request("a photo of a red mug", seed=3, steps=4, width=64, height=64, sampler="PNDM")
    theirs = Engine(pipeline).generate(request)[0].tobytes()
    assert Engine.from_base(open_base_model(mini)).generate(request)[0].tobytes() == theirs


def test_the_configurations_of_mini_have_its_size(mini: Path) -> None:
    unet, vae, text = (json.loads((mini / part / "config.json").read_text()) for part in PARTS)
    assert unet["sample_size"] * 8 == vae["sample_size"] == 64
    assert (text["num_hidden_layers"], text["max_position_embeddings"]) == (12, 77)
    assert unet["cross_attention_dim"] == text["hidden_size"]
    tokenizer = loading.load_tokenizer(mini)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"])
