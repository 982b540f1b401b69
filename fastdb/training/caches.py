"""Caches of latents and text embeddings, which do not change while a stage trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fastdb.formats.safetensors_file import save_tensors
from fastdb.images.photos import read_photo
from fastdb.runtime.paths import cache_folder
from fastdb.storage.atomic_write import make_folder, writing


@dataclass(frozen=True)
class LatentCache:
    """The VAE's posterior for each image; its mean and std keep the posterior's noise in training.

    Attributes:
        mean, std: float32 (images, 4, height / 8, width / 8), on the CPU, not scaled.
        scale: the model's latent scale.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scale: float

    def __len__(self) -> int:
        return self.mean.shape[0]

    def sample(self, image: int, posterior: torch.Tensor) -> torch.Tensor:
        """Return scaled latents of an image for a draw of posterior noise (Kingma and Welling 2014, section 2.4)."""
        return (self.mean[image] + self.std[image] * posterior) * self.scale


def cache_latents(
    images: Sequence[Path],
    *,
    size: int,
    scale: float,
    vae_hash: str,
    load_vae: Callable[[], Any],
    progress: Callable[[int, int], None],
) -> LatentCache:
    """Encode images, or load them from this machine's cache by the hash of pixels and VAE.

    Images are encoded singly, which keeps memory small and makes each result a function of its image alone.

    Args:
        load_vae: called only if an image is missing in the cache.

    Raises:
        ImageError: an image cannot be read.
        StorageError: the cache cannot be written.
    """
    folder = cache_folder() / "latents"
    make_folder(folder)
    vae = None
    means, stds = [], []
    for number, path in enumerate(images, start=1):
        pixels = _read_square(path, size)
        key = hashlib.sha256(f"{vae_hash} {size} ".encode() + pixels.numpy().tobytes()).hexdigest()
        cached = folder / f"{key}.safetensors"
        if not _readable(cached):
            vae = vae if vae is not None else load_vae()
            with writing(cached) as temporary:
                save_tensors(temporary, _encode(vae, pixels))
        # A fresh file is read back too, so that an interrupted and an uninterrupted run use the same bytes.
        latents = load_file(cached)
        means.append(latents["mean"])
        stds.append(latents["std"])
        progress(number, len(images))
    return LatentCache(torch.stack(means), torch.stack(stds), scale)


def _readable(cached: Path) -> bool:
    """Return whether a cache file exists and is complete; a damaged file is made again."""
    try:
        with safe_open(cached, framework="pt") as file:
            return set(file.keys()) == {"mean", "std"}
    except (FileNotFoundError, SafetensorError):
        return False


def _read_square(path: Path, size: int) -> torch.Tensor:
    """Return an image as float32 (3, size, size) in -1..1, resized and centre-cropped if it has another size."""
    from PIL import ImageOps

    image = read_photo(path)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


@torch.no_grad()
def _encode(vae: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
    return {
        "mean": posterior.mean[0].float().cpu().contiguous(),
        "std": posterior.std[0].float().cpu().contiguous(),
    }


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Return token ids (prompts, 77), cut and padded to the text encoder's length as inference programs do."""
    ids: torch.Tensor = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def cache_embeddings(text_encoder: Any, tokenizer: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the text encoder's last normed state for each distinct prompt, float32 (77, width) on the CPU."""
    device = next(text_encoder.parameters()).device
    return {
        prompt: text_encoder(token_ids(tokenizer, [prompt]).to(device))[0][0].float().cpu()
        for prompt in dict.fromkeys(prompts)
    }
