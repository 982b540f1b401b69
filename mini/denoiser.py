"""Training of text encoder and UNet on the latents of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import parts
import torch
from diffusers import DDPMScheduler
from training import Plan, Workers, generator, train

from fastdb.world.scene import Scene, prompt

FIRST = Plan("denoiser-joint", steps=1800, rate=1e-3, ema=0.998, decay_share=0.01, save_every=100)
KNOTS = ((405, 1.0), (1200, 1500 / 2295), (1700, 0.03))
LAST = Plan("denoiser", steps=1700, rate=1e-3, ema=0.998, knots=KNOTS, save_every=100)
"""First text encoder and UNet train together on the first `SHORT` tokens of a caption, which no caption exceeds. Then
the text encoder is frozen, and the UNet trains on all 77 tokens with padding, as in inference."""

SHORT = 24
SHARED = 2
"""Samples per caption in the first part, because the text encoder costs as much as the UNet."""

SCENES = 20_000
"""Number of training pictures; their colours all have names."""

BATCH = 64
SNR = 5.0
"""Gamma of the min-SNR loss weights (Hang et al. 2023)."""


def latents_of(vae: Any, work: Path, seed: int, workers: Workers) -> torch.Tensor:
    """Return the unscaled mean latents of the training pictures, (scenes, 4, 8, 8), saved in `latents.pt`."""
    pictures = data.pictures(work, seed, "scenes", SCENES, workers)

    @torch.no_grad()
    def make(file: Path) -> None:
        groups = (data.to_tensor(pictures[at : at + 100]) for at in range(0, SCENES, 100))
        torch.save(torch.cat([vae.encode(group).latent_dist.mean for group in groups]), file)

    latents: torch.Tensor = torch.load(workers.make_once(work / "latents.pt", make), weights_only=True)
    return latents


def caption_of(scene: Scene, numbers: random.Random) -> str:
    """Return a caption with a random part of a scene's attributes; it is empty with probability 0.1."""
    chance = numbers.random()
    if chance < 0.1:
        return ""
    colour = scene.colour_name if numbers.random() < 0.75 else None
    background = scene.background_name if numbers.random() < 0.75 else None
    texture = scene.texture if background and numbers.random() < 0.9 else None
    return prompt(scene.shape, colour, background, texture)


class Captions:
    """Embeddings of captions, cached once the text encoder is frozen."""

    def __init__(self, encoder: Any, tokenizer: Any, workers: Workers) -> None:
        self.encoder, self.tokenizer, self.workers = encoder, tokenizer, workers
        self.tokens: dict[str, torch.Tensor] = {}
        self.states: dict[str, torch.Tensor] = {}

    def train(self, captions: list[str]) -> torch.Tensor:
        """Return embeddings (captions, SHORT, width) with gradients."""
        distinct = sorted(set(captions))
        states = self.encoder(self.workers.to_device(torch.stack([self._tokens(text)[:SHORT] for text in distinct])))[0]
        return states[torch.tensor([distinct.index(text) for text in captions])]

    @torch.no_grad()
    def frozen(self, captions: list[str]) -> torch.Tensor:
        """Return cached embeddings (captions, 77, width) without gradients."""
        new = sorted(set(captions) - set(self.states))
        if new:
            states = self.encoder(torch.stack([self._tokens(text) for text in new]))[0]
            self.states.update(zip(new, self.workers.to_device(states), strict=True))
        return torch.stack([self.states[text] for text in captions])

    def _tokens(self, text: str) -> torch.Tensor:
        if text not in self.tokens:
            ids = self.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            self.tokens[text] = ids[0]
        return self.tokens[text]


def train_denoiser(
    unet: Any, encoder: Any, tokenizer: Any, latents: torch.Tensor, work: Path, seed: int, workers: Workers
) -> None:
    """Run both parts of the training; `latents` are scaled."""
    scenes = data.scenes(seed, "scenes", len(latents))
    noises = DDPMScheduler.from_config(parts.SCHEDULER)
    signal = noises.alphas_cumprod / (1 - noises.alphas_cumprod)
    weights = workers.to_device((SNR / signal).clamp(max=1.0))
    captions = Captions(encoder, tokenizer, workers)

    def loss_of(part: str, draws: int, embed: Callable[[list[str]], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        def loss_at(step: int) -> torch.Tensor:
            numbers, rng = generator(seed, part, step), random.Random(f"{seed}/{part}/{step}")
            chosen = torch.randint(len(latents), (BATCH // draws,), generator=numbers)
            texts = [caption_of(scenes[number], rng) for number in chosen.tolist()]
            chosen, texts = chosen.repeat_interleave(draws), [text for text in texts for _ in range(draws)]
            noise = torch.randn(BATCH, 4, 8, 8, generator=numbers)
            # Stratified timesteps: the loss varies less than with independent draws.
            spans = torch.arange(BATCH) + torch.rand(BATCH, generator=numbers)
            times = (spans / BATCH * 1000).long().clamp(max=999)[torch.randperm(BATCH, generator=numbers)]
            # Samples that share a caption stay in the same process.
            mine = workers.share(torch.arange(BATCH).view(-1, draws)).reshape(-1)
            clean, noise, times = (workers.to_device(tensor[mine]) for tensor in (latents[chosen], noise, times))
            states = embed([texts[number] for number in mine.tolist()])
            predicted = unet(noises.add_noise(clean, noise, times), times, states, return_dict=False)[0]
            loss: torch.Tensor = ((predicted - noise).square().mean(dim=(1, 2, 3)) * weights[times]).mean()
            return loss

        return loss_at

    train(FIRST, work, {"unet": unet, "text_encoder": encoder}, loss_of("joint", SHARED, captions.train), workers)
    encoder.requires_grad_(False)
    train(LAST, work, {"unet": unet}, loss_of("alone", 1, captions.frozen), workers)
