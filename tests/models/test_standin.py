"""The stand-in is a real model: reproducible, loadable by the libraries, sees photos, and learns."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from fastdb.models import loading  # noqa: E402
from fastdb.models.standin import build_standin  # noqa: E402


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def photo(name: str, side: int) -> torch.Tensor:
    """A square photo of scikit-image as [1, 3, side, side] in -1 .. 1."""
    import numpy as np
    from PIL import Image

    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(getattr(data, name)())
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(-10 * torch.log10(((found - wanted) ** 2).mean() / 4))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(standin: Path, tmp_path: Path) -> None:
    before = time.process_time()
    again = hashes(build_standin(tmp_path / "again"))
    assert time.process_time() - before < 5
    assert again == hashes(standin)
    other = hashes(build_standin(tmp_path / "other", seed=1))
    changed = {name for name in other if other[name] != again[name]}
    assert changed == {name for name in other if name.endswith(".safetensors")}
    assert len(changed) == 3


def test_it_has_the_tensors_of_sd15_in_a_few_million_numbers(standin: Path) -> None:
    parts = [loading.load_unet(standin), loading.load_vae(standin), loading.load_text_encoder(standin)]
    assert [len(part.state_dict()) for part in parts] == [686, 248, 196]
    assert 2e6 < sum(weight.numel() for part in parts for weight in part.parameters()) < 5e6


def test_words_are_single_tokens_and_any_text_tokenises(standin: Path) -> None:
    tokenizer = loading.load_tokenizer(standin)
    prompt = "A photo of sks cat on red cup, zwx astronaut woman person dog mug house man blue"
    words = prompt.lower().replace(",", " ,").split()
    assert tokenizer.tokenize(prompt) == [f"{word}</w>" for word in words]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    padded = tokenizer(prompt, padding="max_length", truncation=True).input_ids
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


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # transformers 5 calls it so itself
def test_vocabulary_and_merges_alone_make_the_same_tokenizer(standin: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((standin / "tokenizer" / name).read_bytes())
    text = "a photo of sks cat, unknownword ünï 7"
    whole = CLIPTokenizer.from_pretrained(standin / "tokenizer")
    assert CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == whole(text).input_ids


@pytest.mark.parametrize(("name", "floor"), [("astronaut", 16.3), ("cat", 22.6), ("coffee", 18.9)])
def test_photos_survive_the_vae_as_blurred_photos(standin: Path, name: str, floor: float) -> None:
    vae, image = loading.load_vae(standin), photo(name, 128)
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
        round_trip = vae.decode(posterior.mean).sample
    flat = image.mean((2, 3), keepdim=True).expand_as(image)
    assert psnr(round_trip, image) > floor > psnr(flat, image) + 4
    assert 0.85 < float(round_trip.std() / image.std()) < 1.05
    assert 0.01 < float(posterior.std.mean()) < 0.1
    latents = posterior.mean * vae.config.scaling_factor
    assert posterior.mean.shape == (1, 4, 16, 16)
    assert 0.5 < float(latents.std()) < 2


def test_the_vae_keeps_contrast_at_half_precision(standin: Path) -> None:
    vae, image = loading.load_vae(standin, torch.bfloat16), photo("coffee", 64)
    with torch.no_grad():
        dim = vae.decode(vae.encode(0.5 * image.bfloat16()).latent_dist.mean).sample.float()
        full = vae.decode(vae.encode(image.bfloat16()).latent_dist.mean).sample.float()
    assert float(dim.std() / full.std()) == pytest.approx(0.5, abs=0.03)


def test_the_unet_has_gradients_everywhere_and_learns(standin: Path) -> None:
    torch.manual_seed(0)
    unet, vae, text = loading.load_unet(standin), loading.load_vae(standin), loading.load_text_encoder(standin)
    tokens = loading.load_tokenizer(standin)("a photo of sks cat", padding="max_length", return_tensors="pt")
    scheduler = loading.load_scheduler(standin)
    with torch.no_grad():
        latents = vae.encode(photo("cat", 64)).latent_dist.mean * vae.config.scaling_factor
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    losses = []
    for step in range(40):
        noise, when = torch.randn(4, 4, 8, 8), torch.randint(0, 1000, (4,))
        noisy = scheduler.add_noise(latents.expand(4, -1, -1, -1), noise, when)
        states = text(tokens.input_ids)[0].expand(4, -1, -1)
        loss = torch.nn.functional.mse_loss(unet(noisy, when, states).sample, noise)
        loss.backward()
        if step == 0:
            parameters = [*unet.named_parameters(), *text.named_parameters()]
            assert len(parameters) == 686 + 196
            # At 64 pixels the last level is one pixel: its self-attention cannot matter, all else must.
            still = [n for n, p in parameters if not p.grad.abs().sum() > 0 and not n.endswith("k_proj.bias")]
            assert [n for n in still if "mid_block.attentions.0.transformer_blocks.0.attn1.to_" not in n] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert 0.9 < losses[0] < 1.1
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:5]) / 5


def test_whole_pipelines_load_and_draw(standin: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(standin, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    draw = pipeline("a photo of sks cat", num_inference_steps=2, height=64, width=64, output_type="np")
    assert draw.images.shape == (1, 64, 64, 3)
    assert draw.images.std() > 0.02
