"""Training of text encoder and UNet on the latents of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import numpy as np
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
    return encoded(vae, data.pictures(work, seed, "scenes", SCENES, workers), work / "latents.pt", workers)


def encoded(vae: Any, pictures: np.ndarray, file: Path, workers: Workers) -> torch.Tensor:
    """Return the unscaled mean latents of pictures, (pictures, 4, 8, 8), saved in `file`."""

    @torch.no_grad()
    def make(new: Path) -> None:
        groups = (data.to_tensor(pictures[at : at + 100]) for at in range(0, len(pictures), 100))
        torch.save(torch.cat([vae.encode(group).latent_dist.mean for group in groups]), new)

    latents: torch.Tensor = torch.load(workers.make_once(file, make), weights_only=True)
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

    def train(self, captions: list[str], length: int = SHORT) -> torch.Tensor:
        """Return embeddings (captions, length, width) with gradients."""
        distinct = sorted(set(captions))
        tokens = torch.stack([self._tokens(text)[:length] for text in distinct])
        states = self.encoder(self.workers.to_device(tokens))[0]
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


class Denoising:
    """The loss of the UNet on scaled latents of scenes."""

    def __init__(self, unet: Any, latents: torch.Tensor, scenes: list[Scene], seed: int, workers: Workers) -> None:
        self.unet, self.latents, self.scenes, self.seed, self.workers = unet, latents, scenes, seed, workers
        self.noises = DDPMScheduler.from_config(parts.SCHEDULER)
        signal = self.noises.alphas_cumprod / (1 - self.noises.alphas_cumprod)
        self.weights = workers.to_device((SNR / signal).clamp(max=1.0))

    def of(
        self,
        part: str,
        draws: int,
        embed: Callable[[list[str]], torch.Tensor],
        caption: Callable[[Scene, random.Random], str] = caption_of,
        batch: int = 0,
    ) -> Callable[[int], torch.Tensor]:
        """Return the loss of each step of a part.

        Args:
            part: names the random numbers.
            draws: samples per caption.
            embed: returns the embeddings of captions.
            caption: returns a caption of a scene.
            batch: samples per step; `BATCH` by default.
        """
        batch = batch or BATCH

        def loss_at(step: int) -> torch.Tensor:
            numbers, rng = generator(self.seed, part, step), random.Random(f"{self.seed}/{part}/{step}")
            chosen = torch.randint(len(self.latents), (batch // draws,), generator=numbers)
            texts = [caption(self.scenes[number], rng) for number in chosen.tolist()]
            chosen, texts = chosen.repeat_interleave(draws), [text for text in texts for _ in range(draws)]
            noise = torch.randn(batch, 4, 8, 8, generator=numbers)
            # Stratified timesteps: the loss varies less than with independent draws.
            spans = torch.arange(batch) + torch.rand(batch, generator=numbers)
            times = (spans / batch * 1000).long().clamp(max=999)[torch.randperm(batch, generator=numbers)]
            # Samples that share a caption stay in the same process.
            mine = self.workers.share(torch.arange(batch).view(-1, draws)).reshape(-1)
            clean, noise, times = (
                self.workers.to_device(tensor[mine]) for tensor in (self.latents[chosen], noise, times)
            )
            states = embed([texts[number] for number in mine.tolist()])
            predicted = self.unet(self.noises.add_noise(clean, noise, times), times, states, return_dict=False)[0]
            squared = (predicted - noise).square().mean(dim=(1, 2, 3))
            loss: torch.Tensor = (squared * self.weights[times]).mean()
            return loss

        return loss_at


def train_denoiser(
    unet: Any, encoder: Any, tokenizer: Any, latents: torch.Tensor, work: Path, seed: int, workers: Workers
) -> None:
    """Run both parts of the training; `latents` are scaled."""
    captions = Captions(encoder, tokenizer, workers)
    loss = Denoising(unet, latents, data.scenes(seed, "scenes", len(latents)), seed, workers)
    train(FIRST, work, {"unet": unet, "text_encoder": encoder}, loss.of("joint", SHARED, captions.train), workers)
    encoder.requires_grad_(False)
    train(LAST, work, {"unet": unet}, loss.of("alone", 1, captions.frozen), workers)
