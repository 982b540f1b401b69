"""Training of the autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import torch
import torch.nn.functional as F
from training import Plan, Workers, generator, train

PLAN = Plan("vae", steps=2400, rate=2e-3, ema=0.997, decay_share=0.5)
PICTURES = 12_000
HELD_OUT = 256
"""Number of pictures that are not trained on."""

SMALL_UNTIL = 0.5
"""Fraction of steps on quarters of pictures, in batches four times as large. They are cheaper and suffice for edges."""


def train_vae(vae: Any, work: Path, seed: int, workers: Workers) -> None:
    """Train encoder and decoder on reconstruction and gradient errors and a small Kullback-Leibler divergence."""
    pictures = data.pictures(work, seed, "vae", PICTURES, workers, any_colour=True)
    held = workers.to_device(data.to_tensor(data.pictures(work, seed, "held", HELD_OUT, workers)))

    def loss(step: int) -> torch.Tensor:
        numbers = generator(seed, "vae", step)
        small = step < SMALL_UNTIL * PLAN.steps
        chosen = torch.randint(PICTURES, (24 if small else 6,), generator=numbers)
        corners = torch.randint(3, (len(chosen), 2), generator=numbers) * 16
        noise = torch.randn(len(chosen), 4, 4 if small else 8, 4 if small else 8, generator=numbers)
        mine = workers.share(torch.arange(len(chosen)))
        images = workers.to_device(data.to_tensor(pictures[chosen[mine].numpy()]))
        if small:
            cut = zip(images, corners[mine].tolist(), strict=True)
            images = torch.stack([image[:, top : top + 32, left : left + 32] for image, (top, left) in cut])
        moments = vae.quant_conv(vae.encoder(images))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        decoded = vae.decode(mean + workers.to_device(noise[mine]) * (0.5 * log_variance).exp()).sample
        return error(decoded, images) + 1e-4 * divergence

    train(PLAN, work, {"vae": vae}, loss, workers, lambda _: f"psnr {psnr(vae, held):.2f}")


def error(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the absolute and squared error plus the absolute error of gradients along both sides."""
    across = F.l1_loss(decoded.diff(dim=-1), images.diff(dim=-1))
    down = F.l1_loss(decoded.diff(dim=-2), images.diff(dim=-2))
    return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + 0.3 * (across + down)


@torch.no_grad()
def psnr(vae: Any, images: torch.Tensor) -> float:
    """Return the mean over pictures of 10 log10(1 / mean squared error), pixels in 0 to 1, in dB."""
    values = []
    for batch in images.split(32):
        decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((decoded - batch) / 2).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
