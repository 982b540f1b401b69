"""Text encoder and UNet, trained together from nothing on the latents of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import parts
import torch
from diffusers import DDPMScheduler
from training import Crew, Plan, generator, train

from fastdb.world.scene import Scene, prompt

FIRST = Plan("denoiser-joint", steps=1800, rate=1e-3, ema=0.998, fall=0.01, save_every=100)
BENDS = ((405, 1.0), (1200, 1500 / 2295), (1700, 0.03))
LAST = Plan("denoiser", steps=1700, rate=1e-3, ema=0.998, bends=BENDS, save_every=100)
"""First text encoder and UNet train together and see the first `SHORT` tokens of a caption, which is all that captions
fill; then the text encoder stands still, and the UNet sees all 77, padding included, as the model is used."""

SHORT = 24
TWICE = 2
"""In the first part a caption of a batch serves this many samples, since the text encoder is as costly as the UNet."""

SCENES = 20_000
"""Pictures to learn from, without colours nobody has a word for."""

BATCH = 64
SNR = 5.0
"""Steps with little noise count less: Hang et al. 2023 (min-SNR), gamma."""


def latents_of(vae: Any, work: Path, seed: int, crew: Crew) -> torch.Tensor:
    """Mean latents of the training pictures, (scenes, 4, 8, 8), not scaled; kept in `latents.pt`."""
    pictures = data.pictures(work, seed, "scenes", SCENES, crew)

    @torch.no_grad()
    def make(file: Path) -> None:
        groups = (data.to_tensor(pictures[at : at + 100]) for at in range(0, SCENES, 100))
        torch.save(torch.cat([vae.encode(group).latent_dist.mean for group in groups]), file)

    latents: torch.Tensor = torch.load(crew.once(work / "latents.pt", make), weights_only=True)
    return latents


def told(scene: Scene, numbers: random.Random) -> str:
    """A caption of a scene: of all there is to say, or of less, or nothing at all one time in ten."""
    chance = numbers.random()
    if chance < 0.1:
        return ""
    colour = scene.colour_name if numbers.random() < 0.75 else None
    background = scene.background_name if numbers.random() < 0.75 else None
    texture = scene.texture if background and numbers.random() < 0.9 else None
    return prompt(scene.shape, colour, background, texture)


class Captions:
    """What the UNet is told: tokens of captions, and their embeddings once the text encoder stands still."""

    def __init__(self, encoder: Any, tokenizer: Any, crew: Crew) -> None:
        self.encoder, self.tokenizer, self.crew = encoder, tokenizer, crew
        self.tokens: dict[str, torch.Tensor] = {}
        self.states: dict[str, torch.Tensor] = {}

    def learning(self, captions: list[str]) -> torch.Tensor:
        """Embeddings (captions, SHORT, width) that the gradient flows through."""
        different = sorted(set(captions))
        states = self.encoder(self.crew.here(torch.stack([self._tokens(text)[:SHORT] for text in different])))[0]
        return states[torch.tensor([different.index(text) for text in captions])]

    @torch.no_grad()
    def learned(self, captions: list[str]) -> torch.Tensor:
        """Embeddings (captions, 77, width) of the text encoder as it is, kept."""
        new = sorted(set(captions) - set(self.states))
        if new:
            states = self.encoder(torch.stack([self._tokens(text) for text in new]))[0]
            self.states.update(zip(new, self.crew.here(states), strict=True))
        return torch.stack([self.states[text] for text in captions])

    def _tokens(self, text: str) -> torch.Tensor:
        if text not in self.tokens:
            ids = self.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            self.tokens[text] = ids[0]
        return self.tokens[text]


def train_denoiser(
    unet: Any, encoder: Any, tokenizer: Any, latents: torch.Tensor, work: Path, seed: int, crew: Crew
) -> None:
    """Both parts of the training, one after the other; `latents` are scaled."""
    scenes = data.scenes(seed, "scenes", len(latents))
    noises = DDPMScheduler.from_config(parts.SCHEDULER)
    signal = noises.alphas_cumprod / (1 - noises.alphas_cumprod)
    weights = crew.here((SNR / signal).clamp(max=1.0))
    captions = Captions(encoder, tokenizer, crew)

    def loss_of(part: str, draws: int, embed: Callable[[list[str]], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        def loss_at(step: int) -> torch.Tensor:
            numbers, lots = generator(seed, part, step), random.Random(f"{seed}/{part}/{step}")
            chosen = torch.randint(len(latents), (BATCH // draws,), generator=numbers)
            said = [told(scenes[number], lots) for number in chosen.tolist()]
            chosen, said = chosen.repeat_interleave(draws), [text for text in said for _ in range(draws)]
            noise = torch.randn(BATCH, 4, 8, 8, generator=numbers)
            # One timestep from each of as many equal spans: the loss varies less than with free draws.
            spans = torch.arange(BATCH) + torch.rand(BATCH, generator=numbers)
            times = (spans / BATCH * 1000).long().clamp(max=999)[torch.randperm(BATCH, generator=numbers)]
            # Samples that share a caption stay in one process.
            mine = crew.share(torch.arange(BATCH).view(-1, draws)).reshape(-1)
            clean, noise, times = (crew.here(one[mine]) for one in (latents[chosen], noise, times))
            states = embed([said[number] for number in mine.tolist()])
            predicted = unet(noises.add_noise(clean, noise, times), times, states, return_dict=False)[0]
            loss: torch.Tensor = ((predicted - noise).square().mean(dim=(1, 2, 3)) * weights[times]).mean()
            return loss

        return loss_at

    train(FIRST, work, {"unet": unet, "text_encoder": encoder}, loss_of("joint", TWICE, captions.learning), crew)
    encoder.requires_grad_(False)
    train(LAST, work, {"unet": unet}, loss_of("alone", 1, captions.learned), crew)
