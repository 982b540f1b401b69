"""Training of the judge on drawn pictures before and after the autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import torch
import torch.nn.functional as F
from training import Plan, Workers, generator, train

from fastdb.world.readings import HEADS, Judge, expected_reading

PLAN = Plan("judge", steps=1200, rate=1.5e-3, ema=0.998, decay_share=0.7, weight_decay=0.03)
SCENES = 16_000
ROUND_TRIPS = 6_000
"""Number of these that are also used after the autoencoder."""

LATENT_NOISE = 0.3
"""Largest noise on their latents, relative to the standard deviation of latents."""


def labels_of(seed: int, kind: str, count: int) -> torch.Tensor:
    """Return the indices of the correct words, int64 (count, heads)."""
    readings = [expected_reading(scene) for scene in data.scenes(seed, kind, count)]
    return torch.tensor(
        [[words.index(getattr(reading, head)) for head, words in HEADS.items()] for reading in readings]
    )


@torch.no_grad()
def round_trips(vae: Any, images: torch.Tensor, seed: int) -> torch.Tensor:
    """Encode and decode pictures with noise on their latents, (n, 3, 64, 64) in -1 to 1."""
    numbers, decoded = generator(seed, "round trips"), []
    for batch in images.split(50):
        latents = vae.encode(batch).latent_dist.mean
        amount = torch.rand(len(batch), 1, 1, 1, generator=numbers) * LATENT_NOISE * latents.std()
        noise = torch.randn(latents.shape, generator=numbers) * amount
        decoded.append(vae.decode(latents + noise).sample.clamp(-1, 1))
    return torch.cat(decoded)


def train_judge(judge: Judge, vae: Any, work: Path, seed: int, workers: Workers) -> None:
    """Train on both kinds of pictures, blurred and noisy; every process trains on whole batches."""
    images = data.to_tensor(data.pictures(work, seed, "judged", SCENES, workers))
    labels = labels_of(seed, "judged", SCENES)

    def make(file: Path) -> None:
        torch.save(round_trips(vae, images[:ROUND_TRIPS], seed).half(), file)

    decoded = torch.load(workers.make_once(work / "round-trips.pt", make), weights_only=True).float()

    def loss(step: int) -> torch.Tensor:
        numbers = generator(seed, "judge", step)
        drawn = torch.randint(SCENES, (32,), generator=numbers)
        returned = torch.randint(ROUND_TRIPS, (32,), generator=numbers)
        batch = torch.cat([images[drawn], decoded[returned]])
        target = labels[torch.cat([drawn, returned])]
        noise = torch.randn(batch.shape, generator=numbers) * torch.rand(64, 1, 1, 1, generator=numbers) * 0.08
        soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        softness = torch.rand(64, 1, 1, 1, generator=numbers) * (torch.rand(64, 1, 1, 1, generator=numbers) < 0.5)
        scores = judge(workers.to_device(torch.lerp(batch, soft, softness) + noise))
        target = workers.to_device(target)
        losses = [F.cross_entropy(scores[head], target[:, at]) for at, head in enumerate(HEADS)]
        return torch.stack(losses).mean()

    train(PLAN, work, {"judge": judge}, loss, workers)
