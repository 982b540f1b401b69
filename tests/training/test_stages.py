"""Weights that each stage changes, and the effect of settings on the loss."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import standing
from fastdb.errors import TrainingError
from fastdb.models.diffusers_folder import open_base_model, weight_file
from fastdb.models.layouts.layout import modern_name
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.runtime.device import choose_device
from fastdb.sessions.session import Session
from fastdb.training.batches import Batches, every_prompt
from fastdb.training.caches import token_ids
from fastdb.training.class_images import ClassImage
from fastdb.training.loop import Loop
from fastdb.training.prepare import image_groups, plan_run
from fastdb.training.stages import build_stage
from fastdb.training.trainer import Trainer

Made = Callable[..., Session]
LONG: dict[str, Any] = {
    "text_encoder__steps": 0,
    "unet__steps": 40,
    "unet__learning_rate": 2e-3,
    "checkpoints__every_steps": 40,
}


def moved(part: str, session: Session, mini: Path) -> dict[str, float]:
    """The largest change of each tensor of a part since the base model."""
    before = {modern_name(part, name): value for name, value in load_file(weight_file(mini, part)).items()}
    after = {modern_name(part, name): value for name, value in load_file(standing(session).weights[part]).items()}
    assert set(after) == set(before) - {name for name in before if name.endswith("position_ids")}
    return {name: float((after[name] - before[name].float()).abs().max()) for name in after}


def test_each_stage_moves_its_own_part(straight: Session, mini: Path) -> None:
    still = {
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
    }
    for part, count in (("text_encoder", 196), ("unet", 686)):
        change = moved(part, straight, mini)
        assert len(change) == count
        # At 64 px the deepest level has one place: attention to itself is 1 whatever query and key are,
        # and all that can move them is the weight decay.
        stuck = [name for name, amount in change.items() if amount == 0 and name.rpartition(".")[0] not in still]
        assert not stuck


def test_the_unet_stage_leaves_the_text_encoder_and_the_files_of_the_base_model(make_session: Made, mini: Path) -> None:
    base = {part: weight_file(mini, part).read_bytes() for part in ("unet", "vae", "text_encoder")}
    session = make_session("only_unet", text_encoder__steps=0, unet__steps=3)
    train(session)
    assert set(standing(session).weights) == {"unet"}
    assert max(moved("unet", session, mini).values()) > 0
    assert {part: weight_file(mini, part).read_bytes() for part in base} == base


def test_the_text_encoder_stage_leaves_the_unet(make_session: Made, mini: Path) -> None:
    session = make_session("only_text", text_encoder__steps=3, unet__steps=0)
    train(session)
    assert set(standing(session).weights) == {"text_encoder"}
    assert max(moved("text_encoder", session, mini).values()) > 0


@pytest.fixture(scope="module")
def with_prior(make_session: Made) -> Trainer:
    """A trainer after 40 steps with prior preservation."""
    return train(make_session("prior", **LONG))


def test_the_loss_on_the_instance_images_falls(with_prior: Trainer) -> None:
    before, after = loss_of(with_prior, None), loss_of(with_prior, standing(with_prior.session).weights["unet"])
    assert after < 0.8 * before


def test_prior_preservation_holds_the_class_images(with_prior: Trainer, make_session: Made) -> None:
    """The loss on the class images ends lower with prior preservation than without, the rest being equal."""
    without = train(make_session("no_prior", **LONG, prior__weight=0.0))
    both = [loss_of(one, standing(one.session).weights["unet"], group="class") for one in (with_prior, without)]
    assert both[0] < 0.9 * both[1]


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session("nan", text_encoder__steps=0, unet__steps=9)
    honest = Loop.loss

    def fifth_is_nan(self: Loop, batch: Any) -> Any:
        loss, instance, prior = honest(self, batch)
        if not torch.is_grad_enabled():  # on fixed noise
            return loss, instance, prior
        factor = math.nan if calls.append(1) or len(calls) == 5 else 1.0
        return loss * factor, instance, prior

    calls: list[int] = []
    monkeypatch.setattr(Loop, "loss", fifth_is_nan)
    with pytest.raises(TrainingError, match="loss of step 5 is not finite") as caught:
        train(session)
    assert "with a lower learning rate: fastdb train nan --from-step 3 --set unet.learning_rate=" in str(caught.value)
    assert standing(session).checkpoints["unet"].step == 3


def test_accumulated_gradients_equal_one_larger_batch(make_session: Made) -> None:
    """Two microbatches of one differ from a batch of two only in what is drawn: here their gradients are compared."""
    trainer = train(make_session("accumulate", text_encoder__steps=0, unet__steps=1, prior__class_images=0))
    session = trainer.session
    gradients = []
    for accumulation in (1, 2):
        loop = a_loop(trainer, accumulation)
        batch = loop.batches.at(0, 0)
        for _ in range(accumulation):
            with loop.accelerator.accumulate(*loop.stage.trained.values()):
                loop.accelerator.backward(loop.loss(batch)[0])
        gradients.append(torch.cat([value.grad.flatten() for value in loop.stage.unet.parameters()]))
    assert session.config.gradient_accumulation == 1
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def silent(kind: str, /, **fields: object) -> None:
    """Nobody follows."""


def train(session: Session) -> Trainer:
    """Train in this process to the end."""
    trainer = Trainer(session, silent, threading.Event())
    assert trainer.run() == "finished"
    return trainer


def a_loop(trainer: Trainer, accumulation: int = 1, weights: Path | None = None, group: str = "instance") -> Loop:
    """The loop of a session's UNet stage, with given weights and without an optimizer."""
    session = trainer.session
    prepared = plan_run(session, silent)[0]
    prior = [ClassImage(path, session.class_prompts[0]) for path in sorted(session.class_images.glob("*.png"))]
    groups = image_groups(prepared, prior, silent)
    groups = tuple(replace(one, size=4) for one in groups if one.name == group)
    batches = Batches(groups, seed=99, stage="test", microbatches=1, timesteps=1000)
    prompts = [*every_prompt(groups), *(image.prompt for image in prepared.images)]
    trained = {"unet": weights} if weights else {}
    stage = build_stage("unet", prepared.base, session.config, prepared.device, trained, prompts)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    schedule = DDPMScheduler.from_config(load_scheduler(prepared.base.folder).config)
    return Loop(accelerator, stage, None, batches, schedule, session.config)  # type: ignore[arg-type]


@torch.no_grad()
def loss_of(trainer: Trainer, weights: Path | None, group: str = "instance") -> float:
    """The mean loss over 64 fixed draws of images, timesteps and noise that training never used."""
    loop = a_loop(trainer, weights=weights, group=group)
    return sum(float(loop.loss(loop.batches.at(step, 0))[1]) for step in range(16)) / 16


def test_the_unet_stage_is_conditioned_by_the_text_encoder_the_first_stage_made(straight: Session, mini: Path) -> None:
    base, weights = open_base_model(mini), raw_files(standing(straight).weights, mini)
    prompts = ["a photo of sks cup", ""]
    stage = build_stage("unet", base, straight.config, choose_device(), weights, prompts)
    tokenizer = load_tokenizer(mini)
    with torch.no_grad():
        trained, untrained = (
            load_part(mini, "text_encoder", weights=path)(token_ids(tokenizer, prompts))[0]
            for path in (weights["text_encoder"], None)
        )
    assert torch.allclose(stage.condition(prompts), trained, atol=1e-5)
    assert not torch.allclose(stage.condition(prompts), untrained, atol=1e-4)
