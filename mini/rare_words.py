"""Further training of text encoder and UNet with rare words before the class."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import data
import denoiser
import torch
from tokenizer import WORDS
from training import Plan, Workers, train

from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene

PLAN = Plan("rare-words", steps=500, rate=3e-4, ema=0.99, warmup=50, decay_share=0.8, save_every=50)

SHARE = 0.03
"""Fraction of captions with a rare word."""

UNSEEN = ("sks", "ohwx", "zwx")
"""Words that no caption contains, so that they can test how the model treats an unknown word."""

IN_CAPTIONS = {"a", "photo", "of", "on", "background", *SHAPES, *COLOURS, *BACKGROUNDS, *TEXTURES}
RARE = tuple(word for word in WORDS.split() if word not in {*IN_CAPTIONS, *UNSEEN})
LETTERS = "abcdefghijklmnopqrstuvwxyz"

LENGTH = 77
"""Tokens with padding, as in inference."""

BATCH = 32

SCENES = 10_000
"""Number of training pictures, the first of those that text encoder and UNet were trained on."""


def latents_of(vae: Any, work: Path, seed: int, workers: Workers) -> torch.Tensor:
    """Return the unscaled mean latents of the training pictures, (scenes, 4, 8, 8), saved in `rare-latents.pt`."""
    pictures = data.pictures(work, seed, "scenes", denoiser.SCENES, workers)[:SCENES]
    return denoiser.encoded(vae, pictures, work / "rare-latents.pt", workers)


def caption_of(scene: Scene, numbers: random.Random) -> str:
    """Return a caption as in the first training, with a rare word before the class in `SHARE` of them."""
    text = denoiser.caption_of(scene, numbers)
    if numbers.random() >= SHARE or not text:
        return text
    text = text.replace(f" {scene.shape}", f" {rare_word(numbers)} {scene.shape}", 1)
    return text.replace("a photo of a ", "a photo of ", 1) if numbers.random() < 0.5 else text


def rare_word(numbers: random.Random) -> str:
    """Return a word of the vocabulary that no other caption contains, or up to four random letters."""
    while True:
        length = numbers.randint(1, 4)
        letters = "".join(numbers.choice(LETTERS) for _ in range(length))
        word = numbers.choice((letters, numbers.choice(RARE)))
        if word not in IN_CAPTIONS and word not in UNSEEN:
            return word


def train_rare_words(
    unet: Any, encoder: Any, tokenizer: Any, latents: torch.Tensor, work: Path, seed: int, workers: Workers
) -> None:
    """Train both in place on all 77 tokens; `latents` are scaled."""
    captions = denoiser.Captions(encoder, tokenizer, workers)

    def embed(texts: list[str]) -> torch.Tensor:
        return captions.train(texts, LENGTH)

    loss = denoiser.Denoising(unet, latents, data.scenes(seed, "scenes", len(latents)), seed, workers)
    modules = {"unet": unet, "text_encoder": encoder}
    train(PLAN, work, modules, loss.of("rare words", 1, embed, caption_of, BATCH), workers)
