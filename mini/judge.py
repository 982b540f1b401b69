"""The judge of drawn pictures, trained on renders and on what the autoencoder makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import torch
import torch.nn.functional as F
from training import Crew, Plan, generator, train

from fastdb.world.readings import HEADS, Judge, expected_reading

PLAN = Plan("judge", steps=1200, rate=1.5e-3, ema=0.998, fall=0.7, decay=0.03)
SCENES = 16_000
ROUND_TRIPS = 6_000
"""How many of them it sees after the autoencoder too."""

SPOIL = 0.3
"""Most noise on latents there, as a part of their deviation."""


def labels_of(seed: int, kind: str, count: int) -> torch.Tensor:
    """Numbers of the right words, int64 (count, heads)."""
    right = [expected_reading(scene) for scene in data.scenes(seed, kind, count)]
    return torch.tensor([[words.index(getattr(one, head)) for head, words in HEADS.items()] for one in right])


@torch.no_grad()
def round_trips(vae: Any, images: torch.Tensor, seed: int) -> torch.Tensor:
    """What the autoencoder gives back, (n, 3, 64, 64) in -1 to 1, when latents are a little off."""
    numbers, back = generator(seed, "round trips"), []
    for some in images.split(50):
        latents = vae.encode(some).latent_dist.mean
        amount = torch.rand(len(some), 1, 1, 1, generator=numbers) * SPOIL * latents.std()
        noise = torch.randn(latents.shape, generator=numbers) * amount
        back.append(vae.decode(latents + noise).sample.clamp(-1, 1))
    return torch.cat(back)


def train_judge(judge: Judge, vae: Any, work: Path, seed: int, crew: Crew) -> None:
    """Train it on both kinds of pictures, blurred and noisy; every process on whole batches."""
    images = data.to_tensor(data.pictures(work, seed, "judged", SCENES, crew))
    labels = labels_of(seed, "judged", SCENES)

    def make(file: Path) -> None:
        torch.save(round_trips(vae, images[:ROUND_TRIPS], seed).half(), file)

    back = torch.load(crew.once(work / "round-trips.pt", make), weights_only=True).float()

    def loss(step: int) -> torch.Tensor:
        numbers = generator(seed, "judge", step)
        drawn = torch.randint(SCENES, (32,), generator=numbers)
        returned = torch.randint(ROUND_TRIPS, (32,), generator=numbers)
        batch = torch.cat([images[drawn], back[returned]])
        right = labels[torch.cat([drawn, returned])]
        noise = torch.randn(batch.shape, generator=numbers) * torch.rand(64, 1, 1, 1, generator=numbers) * 0.08
        soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        softness = torch.rand(64, 1, 1, 1, generator=numbers) * (torch.rand(64, 1, 1, 1, generator=numbers) < 0.5)
        said = judge(crew.here(torch.lerp(batch, soft, softness) + noise))
        right = crew.here(right)
        wrong = (F.cross_entropy(said[head], right[:, at]) for at, head in enumerate(HEADS))
        return torch.stack(list(wrong)).mean()

    train(PLAN, work, {"judge": judge}, loss, crew)
