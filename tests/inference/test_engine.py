"""Pictures by prompt, seed, steps, guidance and sampler of a trained model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from PIL.Image import Image

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import standing
from fastdb.errors import ConfigError, ModelError
from fastdb.inference.engine import Engine
from fastdb.inference.request import Request
from fastdb.inference.samplers import SAMPLERS, make_sampler
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.sessions.session import Session
from fastdb.training.caches import cache_embeddings

PROMPT = "a photo of sks cup"
REQUEST = Request(PROMPT, seed=3, steps=6, width=64, height=64)


def one(engine: Engine, **changes: Any) -> np.ndarray:
    """The picture of `REQUEST` with some of it changed, as (height, width, 3) whole numbers."""
    pictures = engine.generate(replace(REQUEST, **changes))
    assert len(pictures) == 1
    assert pictures[0].mode == "RGB"
    return np.asarray(pictures[0]).astype(int)


def data(pictures: list[Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_pictures_are_not_only_black_and_white(engine: Engine) -> None:
    """Without this, most comparisons below would compare little."""
    picture = one(engine)
    assert ((picture > 0) & (picture < 255)).mean() > 0.4
    assert picture.std() > 20


@pytest.fixture(scope="module")
def by_sampler(engine: Engine) -> dict[str, np.ndarray]:
    return {name: one(engine, sampler=name, steps=12) for name in SAMPLERS}


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_draws_the_same_thing_in_its_own_way(name: str, by_sampler: dict[str, np.ndarray]) -> None:
    """A number that is not finite would stop this test: numpy warns when one becomes a pixel."""
    picture = by_sampler[name]
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 20
    for other, drawn in by_sampler.items():
        assert other == name or not np.array_equal(picture, drawn), f"{other} draws the same as {name}"
    if name != "Euler a":  # which adds noise of its own on the way, and so arrives elsewhere
        assert np.corrcoef(picture.ravel(), by_sampler["DPM++ 2M"].ravel())[0, 1] > 0.8


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_keeps_the_models_noise_schedule(name: str, mini: Path) -> None:
    base = load_scheduler(mini).config
    odd = {**base, "beta_end": 0.0137, "prediction_type": "v_prediction"}
    made = make_sampler(name, odd)
    assert (made.config.beta_end, made.config.prediction_type) == (0.0137, "v_prediction")
    assert made.config.beta_schedule == base["beta_schedule"]


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a", "PNDM"])
def test_a_picture_depends_on_its_own_seed_alone(engine: Engine, sampler: str) -> None:
    request = replace(REQUEST, seed=5, count=3, sampler=sampler)
    together = data(engine.generate(request))
    alone = [data(engine.generate(replace(request, seed=seed, count=1)))[0] for seed in (7, 5, 6)]
    assert together == [alone[1], alone[2], alone[0]]
    assert len(set(together)) == 3


def test_the_same_request_draws_the_same_again(engine: Engine) -> None:
    assert data(engine.generate(REQUEST)) == data(engine.generate(REQUEST))


def test_the_largest_seed_draws(engine: Engine) -> None:
    assert not np.array_equal(one(engine, seed=2**63 - 2, steps=1), one(engine, seed=0, steps=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": 1.0},
        {"guidance": 0.0},
        {"negative_prompt": "cat"},
        {"prompt": "astronaut"},
        {"steps": 7},
        {"seed": 4},
    ],
    ids=str,
)
def test_everything_asked_for_counts(engine: Engine, changes: dict[str, Any]) -> None:
    assert REQUEST.guidance == 7.5
    assert not np.array_equal(one(engine), one(engine, **changes))


def test_a_prompt_of_any_length_draws(engine: Engine) -> None:
    for prompt in ("", "sks cup " * 500, "日本 \N{DOG FACE}"):
        assert one(engine, prompt=prompt, steps=1).shape == (64, 64, 3)


@pytest.mark.parametrize(("width", "height"), [(64, 128), (128, 64), (72, 104)])
def test_pictures_are_as_wide_and_high_as_asked_for(engine: Engine, width: int, height: int) -> None:
    assert engine.generate(replace(REQUEST, width=width, height=height, steps=2))[0].size == (width, height)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_to_the_total(engine: Engine, sampler: str) -> None:
    told: list[tuple[int, int]] = []
    request = replace(REQUEST, count=2, steps=4, sampler=sampler)
    engine.generate(request, progress=lambda done, total: told.append((done, total)))
    counts = [done for done, _ in told]
    assert {total for _, total in told} == {8}
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, 9)), "each step is told"


def test_progress_changes_nothing(engine: Engine) -> None:
    assert data(engine.generate(REQUEST, progress=lambda *_: None)) == data(engine.generate(REQUEST))


def test_embeddings_stand_for_their_prompts(engine: Engine, learned: Session) -> None:
    """To the bit, and without a text encoder: so the trainer draws samples once the text encoder has left."""
    base = Path(learned.record.base_model.folder)
    weights = raw_files(standing(learned).weights, base)
    tokenizer = load_tokenizer(base)
    encoder = load_part(base, "text_encoder", weights=weights["text_encoder"])
    told = cache_embeddings(encoder, tokenizer, [PROMPT, "blurred"])
    bare = Engine.from_parts(
        unet=load_part(base, "unet", weights=weights["unet"]),
        vae=load_part(base, "vae"),
        text_encoder=None,
        tokenizer=tokenizer,
        scheduler=load_scheduler(base),
    )
    request = replace(REQUEST, negative_prompt="blurred")
    drawn = data(bare.generate(request, embeddings=(told[PROMPT], told["blurred"])))
    assert drawn == data(engine.generate(request))
    assert drawn != data(bare.generate(request, embeddings=(told["blurred"], told[PROMPT])))


def test_each_trained_part_counts(engine: Engine, learned: Session) -> None:
    base = Path(learned.record.base_model.folder)
    weights = raw_files(standing(learned).weights, base)
    assert set(weights) == {"unet", "text_encoder"}
    chosen = [{}, {"unet": weights["unet"]}, {"text_encoder": weights["text_encoder"]}, weights]
    drawn = [data(Engine.from_base(open_base_model(base), trained=trained).generate(REQUEST))[0] for trained in chosen]
    assert len(set(drawn)) == 4
    assert drawn[3] == data(engine.generate(REQUEST))[0]


def test_damaged_weights_are_said(learned: Session, tmp_path: Path) -> None:
    file = tmp_path / "unet.safetensors"
    shutil.copy(standing(learned).weights["unet"], file)
    with file.open("r+b") as opened:
        opened.truncate(100_000)
    with pytest.raises(ModelError) as caught:
        Engine.from_base(open_base_model(Path(learned.record.base_model.folder)), trained={"unet": file})
    assert str(caught.value).startswith(f"{file} is damaged (")
    assert str(caught.value).isprintable()


def test_pictures_made_together_depend_on_nothing_of_each_other(engine: Engine) -> None:
    asked = [replace(REQUEST, seed=seed, prompt=f"{PROMPT} {seed}", sampler="Euler a") for seed in range(4)]
    others = [replace(one, seed=90 + one.seed, prompt="something else") for one in asked]
    others[2] = asked[2]
    together, changed = (data(engine.generate_together(requests)) for requests in (asked, others))
    assert len(set(together)) == 4
    assert [one == other for one, other in zip(together, changed, strict=True)] == [False, False, True, False]
    for one, request in zip(together, asked, strict=True):
        alone = engine.generate(request)[0].tobytes()
        apart = np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(alone, np.uint8)
        assert abs(apart).max() <= 2, "together and alone differ by rounding only"


@pytest.mark.parametrize("change", [{"steps": 7}, {"guidance": 2.0}, {"width": 128}, {"sampler": "DDIM"}, {"count": 2}])
def test_what_cannot_be_made_together_is_refused(engine: Engine, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pictures of a pass must have the same size"):
        engine.generate_together([REQUEST, replace(REQUEST, **change)])
