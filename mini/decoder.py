"""Further training of the autoencoder's decoder, with the encoder frozen."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from torch import nn
from training import Plan, Workers, generator, train
from vae import HELD_OUT, psnr

from fastdb.world.draw import draw
from fastdb.world.scene import FIGURES, Layer, Outline, Scene, random_scene

PLAN = Plan("decoder", steps=3400, rate=1.2e-3, ema=0.997, warmup=100, decay_share=0.7, save_every=100)
BATCH = 6

MARKED = 0.7
"""Fraction of pictures whose object has a small mark in a random place and colours of its own."""

WEIGHT = 4.0
"""Weight of the errors of a mark's pixels, relative to other pixels."""


class Decoding(nn.Module):
    """The parts of an autoencoder that decode."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return decoded pictures, (n, 3, height, width)."""
        pictures: torch.Tensor = self.decoder(self.post_quant_conv(latents))
        return pictures


def train_decoder(vae: Any, work: Path, seed: int, workers: Workers) -> None:
    """Train the decoder in place on pictures with small marks, whose pixels count more.

    The latents of a picture stay the same, and so the UNet remains valid.
    """
    held = workers.to_device(data.to_tensor(data.pictures(work, seed, "held", HELD_OUT, workers)))
    vae.to(workers.device)
    decoding = Decoding(vae)

    def loss(step: int) -> torch.Tensor:
        mine = workers.share(torch.arange(BATCH)).tolist()
        pairs = [drawn_pair(random.Random(f"{seed}/decoder/{step}/{number}")) for number in mine]
        images, plain = (data.to_tensor(np.stack(side)) for side in zip(*pairs, strict=True))
        weights = 1 + (WEIGHT - 1) * ((images - plain).abs().amax(1, keepdim=True) > 0.1)
        noise = torch.randn(BATCH, 4, 8, 8, generator=generator(seed, "decoder", step))[mine]
        images, weights, noise = (workers.to_device(tensor) for tensor in (images, weights, noise))
        with torch.no_grad():
            latents = vae.encode(images).latent_dist
            latents = latents.mean + noise * latents.std
        return error(decoding(latents), images, weights)

    train(PLAN, work, {"decoder": decoding}, loss, workers, lambda _: f"psnr {psnr(vae, held):.2f}")
    vae.to("cpu")


def error(decoded: torch.Tensor, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted error of pixels and of gradients along both sides, as in the first training."""
    wrong = decoded - images
    pixels = wrong.abs() + 2 * wrong.square()
    across = (wrong.diff(dim=-1).abs() * weights[..., 1:]).mean()
    down = (wrong.diff(dim=-2).abs() * weights[..., 1:, :]).mean()
    return (pixels * weights).mean() + 0.3 * (across + down)


def drawn_pair(numbers: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Draw a random scene, and the same scene without the object's mark or decoration, uint8 (64, 64, 3)."""
    scene = random_scene(numbers, any_colour=True)
    plain = replace(scene, decoration=None)
    if numbers.random() < MARKED:
        plain = replace(scene, figure=recoloured(scene, numbers))
        scene = replace(plain, figure=(*(plain.figure or ()), mark(numbers)))
    return np.asarray(draw(scene)), np.asarray(draw(plain))


def recoloured(scene: Scene, numbers: random.Random) -> tuple[Layer, ...]:
    """Return the layers of a scene's object; half of the objects have parts in a second colour."""
    second = any_colour(numbers) if numbers.random() < 0.5 else "body"
    return tuple(
        replace(layer, fill=second) if layer.fill in ("body", "shade") and numbers.random() < 0.5 else layer
        for layer in FIGURES[scene.shape]
    )


def mark(numbers: random.Random) -> Layer:
    """Return a regular polygon, a rectangle or a disc in a random place, size and colour."""
    x, y, size = numbers.uniform(-0.4, 0.4), numbers.uniform(-0.35, 0.45), numbers.uniform(0.16, 0.42)
    corners, turn, wide = numbers.choice((3, 4, 4, 4, 24)), numbers.uniform(0, 2 * math.pi), numbers.uniform(0.7, 1.4)
    if numbers.random() < 0.5:
        turn = numbers.choice((0.0, math.pi / 4, math.pi / 2))
    turns = [turn + 2 * math.pi * number / corners for number in range(corners)]
    outline: Outline = tuple((x + size * wide * math.cos(at), y + size / wide * math.sin(at)) for at in turns)
    return Layer(outline, any_colour(numbers), edge=numbers.random() < 0.2)


def any_colour(numbers: random.Random) -> str:
    """Return a random colour `#rrggbb`."""
    return f"#{numbers.randrange(1 << 24):06x}"
