"""What training begins with and learns from: weights, pictures and captions that depend on the seed alone."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdb.world.draw import draw
from fastdb.world.readings import HEADS
from fastdb.world.scene import parse_prompt


@pytest.mark.parametrize("kind", ["new_vae", "new_unet"])
def test_first_weights_depend_on_the_seed_alone(recipe: SimpleNamespace, kind: str) -> None:
    new = getattr(recipe.parts, kind)
    torch.manual_seed(0)
    first = new(0).state_dict()
    torch.manual_seed(1)
    again, other = new(0).state_dict(), new(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(not torch.equal(first[name], other[name]) for name in first) > 50


def test_a_new_unet_says_nothing_and_a_new_autoencoder_shows_something(recipe: SimpleNamespace) -> None:
    with torch.no_grad():
        unet, vae = recipe.parts.new_unet(0), recipe.parts.new_vae(0)
        said = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 24, recipe.parts.WIDTH)).sample
        assert said.abs().amax() == 0
        pictures = recipe.data.to_tensor(np.stack([np.asarray(draw(scene)) for scene in recipe.data.scenes(0, "t", 8)]))
        means = vae.encode(pictures).latent_dist.mean
    assert means.shape == (8, 4, 8, 8)
    assert means.std() > 0.1
    # Different pictures have different latents: it begins near a blurred copy, and not at nothing.
    assert (means - means.mean(0)).std() > 0.1 * means.std()


def test_pictures_are_drawn_once_and_kept(recipe: SimpleNamespace, tmp_path: Path) -> None:
    data, crew = recipe.data, recipe.training.Crew()
    assert data.scenes(0, "some", 9)[:4] == data.scenes(0, "some", 4)
    assert data.scenes(0, "others", 4) != data.scenes(1, "others", 4) != data.scenes(0, "some", 4)
    drawn = data.pictures(tmp_path, 0, "some", 4, crew)
    assert drawn.shape == (4, 64, 64, 3)
    assert drawn.dtype == np.uint8
    for picture, scene in zip(drawn, data.scenes(0, "some", 4), strict=True):
        assert (picture == np.asarray(draw(scene))).all()
    written = (tmp_path / "some.npy").stat().st_mtime_ns
    assert (data.pictures(tmp_path, 0, "some", 4, crew) == drawn).all()
    assert (tmp_path / "some.npy").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"some\.npy holds 4 pictures, not 5"):
        data.pictures(tmp_path, 0, "some", 5, crew)
    floats = data.to_tensor(drawn)
    assert floats.shape == (4, 3, 64, 64)
    assert torch.equal(((floats + 1) * 127.5).round().byte().permute(0, 2, 3, 1), torch.from_numpy(np.array(drawn)))


def test_captions_say_more_or_less_of_a_scene_and_nothing_wrong(recipe: SimpleNamespace) -> None:
    numbers, blank, colour, place, texture = random.Random(0), 0, 0, 0, 0
    scenes = recipe.data.scenes(0, "told", 600)
    for scene in scenes:
        asked = parse_prompt(text := recipe.denoiser.told(scene, numbers))
        assert asked.colour in (None, scene.colour_name)
        assert asked.background in (None, scene.background_name)
        assert asked.texture in (None, scene.texture)
        assert asked.shape == (scene.shape if text else None)
        blank, colour = blank + (not text), colour + (asked.colour is not None)
        place, texture = place + (asked.background is not None), texture + (asked.texture is not None)
    assert blank / 600 == pytest.approx(0.1, abs=0.04)
    assert colour / 600 == pytest.approx(0.9 * 0.75, abs=0.06)
    assert place / 600 == pytest.approx(0.9 * 0.75, abs=0.06)
    assert texture / 600 == pytest.approx(0.9 * 0.75 * 0.9, abs=0.06)


def test_labels_are_the_words_of_the_scenes(recipe: SimpleNamespace) -> None:
    labels = recipe.judge.labels_of(0, "some", 30)
    assert labels.shape == (30, len(HEADS))
    for row, scene in zip(labels.tolist(), recipe.data.scenes(0, "some", 30), strict=True):
        said = [words[number] for number, words in zip(row, HEADS.values(), strict=True)]
        assert said == [scene.shape, scene.colour_name, scene.background_name, scene.texture]


def test_captions_mean_the_same_while_they_are_learned_and_after(recipe: SimpleNamespace, mini: Path) -> None:
    """The first part sees no padding beyond `SHORT` tokens; what comes before cannot look that far."""
    from fastdb.models import loading

    encoder: Any = loading.load_part(mini, "text_encoder")
    captions = recipe.denoiser.Captions(encoder, loading.load_tokenizer(mini), recipe.training.Crew())
    texts = ["a photo of a red mug on a striped blue background", "", "a photo of a dog", ""]
    learning, learned = captions.learning(texts), captions.learned(texts)
    assert learning.shape == (4, recipe.denoiser.SHORT, recipe.parts.WIDTH)
    assert learned.shape == (4, 77, recipe.parts.WIDTH)
    assert learning.requires_grad
    assert not learned.requires_grad
    assert torch.allclose(learning, learned[:, : recipe.denoiser.SHORT], atol=1e-5)
    assert torch.equal(learned[1], learned[3])
    assert not torch.allclose(learned[0], learned[2], atol=1e-2)
