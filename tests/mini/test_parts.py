"""Initial weights, pictures and captions, which depend only on the seed."""

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
from fastdb.world.scene import COLOURS, parse_prompt


@pytest.mark.parametrize("kind", ["new_vae", "new_unet"])
def test_first_weights_depend_on_the_seed_alone(recipe: SimpleNamespace, kind: str) -> None:
    new = getattr(recipe.parts, kind)
    torch.manual_seed(0)
    first = new(0).state_dict()
    torch.manual_seed(1)
    again, other = new(0).state_dict(), new(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(not torch.equal(first[name], other[name]) for name in first) > 50


def test_a_new_unet_returns_zeros_and_a_new_autoencoder_blurred_copies(recipe: SimpleNamespace) -> None:
    with torch.no_grad():
        unet, vae = recipe.parts.new_unet(0), recipe.parts.new_vae(0)
        output = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 24, recipe.parts.WIDTH)).sample
        assert output.abs().amax() == 0
        pictures = recipe.data.to_tensor(np.stack([np.asarray(draw(scene)) for scene in recipe.data.scenes(0, "t", 8)]))
        means = vae.encode(pictures).latent_dist.mean
    assert means.shape == (8, 4, 8, 8)
    assert means.std() > 0.1
    # Different pictures have different latents.
    assert (means - means.mean(0)).std() > 0.1 * means.std()


def test_pictures_are_drawn_once_and_kept(recipe: SimpleNamespace, tmp_path: Path) -> None:
    data, workers = recipe.data, recipe.training.Workers()
    assert data.scenes(0, "some", 9)[:4] == data.scenes(0, "some", 4)
    assert data.scenes(0, "others", 4) != data.scenes(1, "others", 4) != data.scenes(0, "some", 4)
    drawn = data.pictures(tmp_path, 0, "some", 4, workers)
    assert drawn.shape == (4, 64, 64, 3)
    assert drawn.dtype == np.uint8
    for picture, scene in zip(drawn, data.scenes(0, "some", 4), strict=True):
        assert (picture == np.asarray(draw(scene))).all()
    written = (tmp_path / "some.npy").stat().st_mtime_ns
    assert (data.pictures(tmp_path, 0, "some", 4, workers) == drawn).all()
    assert (tmp_path / "some.npy").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"some\.npy contains 4 pictures instead of 5"):
        data.pictures(tmp_path, 0, "some", 5, workers)
    floats = data.to_tensor(drawn)
    assert floats.shape == (4, 3, 64, 64)
    assert torch.equal(((floats + 1) * 127.5).round().byte().permute(0, 2, 3, 1), torch.from_numpy(np.array(drawn)))


def test_captions_contain_a_correct_part_of_a_scene(recipe: SimpleNamespace) -> None:
    numbers, blank, colour, place, texture = random.Random(0), 0, 0, 0, 0
    scenes = recipe.data.scenes(0, "told", 600)
    for scene in scenes:
        asked = parse_prompt(text := recipe.denoiser.caption_of(scene, numbers))
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


def test_rare_words_stand_before_the_class_in_few_captions(recipe: SimpleNamespace) -> None:
    words, numbers = recipe.rare_words, random.Random(0)
    scenes = recipe.data.scenes(0, "told", 3000)
    texts = [(scene, words.caption_of(scene, numbers)) for scene in scenes]
    rare = [(scene, text) for scene, text in texts if set(text.split()) - words.IN_CAPTIONS]
    assert len(rare) / 3000 == pytest.approx(0.9 * words.SHARE, abs=0.03)
    for scene, text in rare:
        before, word, shape = text.partition(" on ")[0].split()[-3:]
        assert (shape, parse_prompt(text).shape) == (scene.shape, scene.shape)
        assert word not in {*words.IN_CAPTIONS, *words.UNSEEN}
        assert before in {"a", "of", *COLOURS}
    assert not any(word in text.split() for _, text in rare for word in words.UNSEEN)


def test_marks_of_the_decoders_pictures_are_visible_and_vary(recipe: SimpleNamespace) -> None:
    pairs = [recipe.decoder.drawn_pair(random.Random(number)) for number in range(60)]
    marked = [np.abs(picture.astype(int) - plain).max() > 20 for picture, plain in pairs]
    assert sum(marked) > 0.6 * len(pairs)
    assert len({picture.tobytes() for picture, _ in pairs}) == len(pairs)


def test_a_marks_pixels_count_more(recipe: SimpleNamespace) -> None:
    images, weights = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    weights[..., :4] = recipe.decoder.WEIGHT
    inside, outside = images.clone(), images.clone()
    inside[..., 2, 2], outside[..., 2, 6] = 1, 1
    inside, outside = (recipe.decoder.error(wrong, images, weights) for wrong in (inside, outside))
    assert float(inside / outside) == pytest.approx(recipe.decoder.WEIGHT, rel=0.01)


def test_labels_are_the_words_of_the_scenes(recipe: SimpleNamespace) -> None:
    labels = recipe.judge.labels_of(0, "some", 30)
    assert labels.shape == (30, len(HEADS))
    for row, scene in zip(labels.tolist(), recipe.data.scenes(0, "some", 30), strict=True):
        read = [words[number] for number, words in zip(row, HEADS.values(), strict=True)]
        assert read == [scene.shape, scene.colour_name, scene.background_name, scene.texture]


def test_embeddings_are_the_same_in_both_parts_of_training(recipe: SimpleNamespace, mini: Path) -> None:
    """The first part has no padding beyond `SHORT` tokens, which causal attention ignores."""
    from fastdb.models import loading

    encoder: Any = loading.load_part(mini, "text_encoder")
    captions = recipe.denoiser.Captions(encoder, loading.load_tokenizer(mini), recipe.training.Workers())
    texts = ["a photo of a red mug on a striped blue background", "", "a photo of a dog", ""]
    training, frozen = captions.train(texts), captions.frozen(texts)
    assert training.shape == (4, recipe.denoiser.SHORT, recipe.parts.WIDTH)
    assert frozen.shape == (4, 77, recipe.parts.WIDTH)
    assert training.requires_grad
    assert not frozen.requires_grad
    assert torch.allclose(training, frozen[:, : recipe.denoiser.SHORT], atol=1e-5)
    assert torch.equal(frozen[1], frozen[3])
    assert not torch.allclose(frozen[0], frozen[2], atol=1e-2)
