"""The autoencoder: both halves together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import torch
import torch.nn.functional as F
from training import Crew, Plan, generator, train

PLAN = Plan("vae", steps=2400, rate=2e-3, ema=0.997, fall=0.5)
PICTURES = 12_000
HELD = 256
"""Pictures nothing is trained on."""

SMALL_UNTIL = 0.5
"""Part of the joint steps that see quarters of pictures, four times as many: cheaper, and enough for edges."""


def train_vae(vae: Any, work: Path, seed: int, crew: Crew) -> None:
    """Train both halves: absolute and squared error, error of the slopes, a little Kullback-Leibler divergence."""
    pictures = data.pictures(work, seed, "vae", PICTURES, crew, any_colour=True)
    held = crew.here(data.to_tensor(data.pictures(work, seed, "held", HELD, crew)))

    def loss(step: int) -> torch.Tensor:
        numbers = generator(seed, "vae", step)
        small = step < SMALL_UNTIL * PLAN.steps
        chosen = torch.randint(PICTURES, (24 if small else 6,), generator=numbers)
        corners = torch.randint(3, (len(chosen), 2), generator=numbers) * 16
        noise = torch.randn(len(chosen), 4, 4 if small else 8, 4 if small else 8, generator=numbers)
        mine = crew.share(torch.arange(len(chosen)))
        images = crew.here(data.to_tensor(pictures[chosen[mine].numpy()]))
        if small:
            cut = zip(images, corners[mine].tolist(), strict=True)
            images = torch.stack([image[:, top : top + 32, left : left + 32] for image, (top, left) in cut])
        moments = vae.quant_conv(vae.encoder(images))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        decoded = vae.decode(mean + crew.here(noise[mine]) * (0.5 * log_variance).exp()).sample
        return error(decoded, images) + 1e-4 * divergence

    train(PLAN, work, {"vae": vae}, loss, crew, lambda _: f"psnr {psnr(vae, held):.2f}")


def error(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute and squared error, and the absolute error of the slopes along both sides."""
    across = F.l1_loss(decoded.diff(dim=-1), images.diff(dim=-1))
    down = F.l1_loss(decoded.diff(dim=-2), images.diff(dim=-2))
    return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + 0.3 * (across + down)


@torch.no_grad()
def psnr(vae: Any, images: torch.Tensor) -> float:
    """Mean over pictures of 10 log10(1 / mean squared error), pixels from 0 to 1, in dB."""
    values = []
    for some in images.split(32):
        decoded = vae.decode(vae.encode(some).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((decoded - some) / 2).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
