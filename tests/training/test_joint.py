"""Joint training of text encoder and UNet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from diffusers import DDPMScheduler
from safetensors.torch import load_file

from fastdb import interactive
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.export_parts import export_parts
from fastdb.checkpoints.progress import Standing, standing
from fastdb.commands import training
from fastdb.errors import TrainingError
from fastdb.inference.open_model import open_source
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training.batches import Batches
from fastdb.training.caches import token_ids
from fastdb.training.prepare import image_groups, plan_run
from tests.other_models import originals
from tests.training.conftest import raw, result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
JOINT: dict[str, Any] = {
    "text_encoder__mode": "joint",
    "text_encoder__steps": 4,
    "unet__steps": 7,
    "prior__class_images": 0,
}


@pytest.fixture(scope="module")
def joint(make_session: Made) -> Session:
    """A session of seven steps, each of whose checkpoints was kept; the text encoder trains in the first four."""
    session = make_session("joint", **JOINT, checkpoints__keep_every=1)
    life = Life(session)
    assert life.run() == "finished"
    plan = life.said("plan")[0]
    assert plan["stages"]["text_encoder"]["steps"] == 0
    assert (plan["stages"]["unet"]["steps"], plan["stages"]["unet"]["learning_rate"]) == (7, 5e-4)
    assert (plan["joint_steps"], plan["joint_learning_rate"]) == (4, 1e-4)
    assert {event["stage"] for event in life.said("step")} == {"unet"}
    assert life.said("step")[0]["learning_rate"] == pytest.approx(5e-4)
    return Session.open(session.path)


def weights(session: Session, step: int, part: str) -> dict[str, Any]:
    loaded: dict[str, Any] = load_file(raw(session, f"unet-{step:06d}/{part}"))
    return loaded


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_text_encoder_trains_for_its_steps_and_then_stands_still(joint: Session, mini: Path) -> None:
    states = [weights(joint, step, "text_encoder") for step in range(1, 8)]
    assert not equal(load_part(mini, "text_encoder").state_dict(), states[0])
    assert [equal(one, next_one) for one, next_one in pairwise(states)] == [False] * 3 + [True] * 3
    unets = [weights(joint, step, "unet") for step in range(1, 8)]
    assert not any(equal(one, next_one) for one, next_one in pairwise(unets))


def test_once_it_stands_still_it_has_no_gradient(joint: Session) -> None:
    """Else it would count in the gradient's norm, and a run that goes on would have other moments."""
    last_of_both, last = (weights(joint, step, "optimizer") for step in (4, 7))
    of_the_unet = len(weights(joint, 7, "unet"))
    moments = {name for name in last if int(name.split("/")[0]) >= of_the_unet}
    assert len(moments) == 3 * len(weights(joint, 7, "text_encoder"))
    assert all(torch.equal(last[name], last_of_both[name]) for name in moments)
    assert not any(torch.equal(last[name], last_of_both[name]) for name in set(last) - moments if name.endswith("step"))


def test_joint_steps_equal_those_written_out_by_hand(joint: Session, mini: Path) -> None:
    """The same batches through two AdamW of torch, one a part, with one norm clipped over both and two rates."""
    config = joint.config
    prepared = plan_run(joint, lambda *_, **__: None)[0]
    groups = image_groups(prepared, [], lambda *_, **__: None)
    batches = Batches(groups, seed=config.seed, stage="unet", microbatches=1, timesteps=1000)
    unet, encoder = load_part(mini, "unet").train(), load_part(mini, "text_encoder").train()
    tokenizer, schedule = load_tokenizer(mini), DDPMScheduler.from_config(load_scheduler(mini).config)
    parts = {"unet": (unet, 5e-4, 7), "text_encoder": (encoder, 1e-4, 4)}
    optimizers = {part: torch.optim.AdamW(module.parameters()) for part, (module, _, _) in parts.items()}
    for step in range(6):
        batch = batches.at(step, 0)
        noised = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        learning = [module for module, _, steps in parts.values() if step < steps]
        with torch.set_grad_enabled(encoder in learning):
            states = encoder(token_ids(tokenizer, batch.prompts))[0]
        loss = (unet(noised, batch.timesteps, states).sample - batch.noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight for module in learning for weight in module.parameters()], 1.0)
        for part, (module, rate, steps) in parts.items():
            if module in learning:
                optimizers[part].param_groups[0]["lr"] = rate * (1 - step / steps)
                optimizers[part].step()
            module.zero_grad()
    for part, (module, _, _) in parts.items():
        trained = weights(joint, 6, part)
        for name, value in module.state_dict().items():
            assert torch.allclose(value, trained[name], rtol=1e-3, atol=2e-6), (part, name)


def test_going_on_is_exact_before_at_and_after_its_last_step(joint: Session, make_session: Made) -> None:
    other = make_session("joint", **JOINT, samples__every_steps=2, samples__steps=2)
    for step in (2, 4, 6):
        assert Life(other, until=at("unet", step)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(other) == result(joint)


@pytest.mark.full
@pytest.mark.parametrize("name", ["adamw8bit", "adamw"])
def test_going_on_is_exact_with_all_of_it(make_session: Made, name: str) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {
        **JOINT,
        "text_encoder__steps": 3,
        "unet__steps": 5,
        "unet__ema_decay": 0.9,
        "optimizer__name": name,
        "gradient_accumulation": 2,
        "gradient_checkpointing": True,
        "prior__class_images": 2,
        "prior__steps": 2,
        "min_snr_gamma": 5.0,
    }
    one, other = (make_session(f"all-{name}{number}", **settings) for number in range(2))
    assert Life(one).run() == "finished"
    for step in (2, 4):
        assert Life(other, until=at("unet", step)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)


@pytest.mark.parametrize("published", [False, True])
def test_the_text_encoder_is_found_wherever_weights_are_looked_for(
    joint: Session, copy: Callable[[Session], Session], mini: Path, published: bool
) -> None:
    session = copy(joint) if published else joint
    folder, ending = (session.checkpoints, "packed") if published else (session.local_checkpoints, "safetensors")
    expected = {part: folder / "unet-000007" / f"{part}.{ending}" for part in ("text_encoder", "unet")}
    assert standing(session).weights == standing(session).training_weights == expected
    unpacked = {part: raw(session, f"unet-000007/{part}") for part in expected}
    parts, done = export_parts(session, ensure_base(session))
    assert done == {"text_encoder": 0, "unet": 7}
    assert {part: parts[part] for part in expected} == (unpacked if published else expected)
    assert all(parts[part].read_bytes() == path.read_bytes() for part, path in unpacked.items())
    fifth = next(one for one in complete(session.checkpoints, "unet") if one.step == 5)
    assert set(Standing({"unet": fifth}, ()).weights) == {"text_encoder", "unet"}
    encoder = open_source(session, None, None).load()._pipeline.text_encoder
    assert equal(encoder.state_dict(), load_part(mini, "text_encoder", weights=unpacked["text_encoder"]).state_dict())


def test_joint_training_is_in_the_overview_and_the_export(joint: Session, capsys: pytest.CaptureFixture[str]) -> None:
    interactive.show(joint)
    assert "unet 7/7 with the text encoder" in capsys.readouterr().out
    [file] = interactive.export(joint, formats=["safetensors"], precision="fp32")
    exported, trained = load_file(file), weights(joint, 7, "text_encoder")
    assert all(torch.equal(exported[to], trained[name]) for name, to in originals("text_encoder", trained).items())


def test_samples_are_drawn_with_the_text_encoder_as_it_is(make_session: Made) -> None:
    settings = {**JOINT, "samples__every_steps": 4, "samples__steps": 2, "samples__guidance": 1.0}
    slow = make_session("slow", **settings)
    fast = make_session("fast", **settings, text_encoder__learning_rate=1e-2)
    assert Life(slow, until=at("unet", 5)).run() == Life(fast, until=at("unet", 5)).run() == "stopped"
    assert not equal(weights(slow, 5, "text_encoder"), weights(fast, 5, "text_encoder"))
    names = [sorted(path.name for path in one.samples.glob("*.png")) for one in (slow, fast)]
    assert names == [["unet-000004-1.png"]] * 2
    drawn = [(one.samples / "unet-000004-1.png").read_bytes() for one in (slow, fast)]
    assert drawn[0] != drawn[1]


def test_without_steps_it_is_the_unet_stage_alone(make_session: Made) -> None:
    settings = {"text_encoder__steps": 0, "unet__steps": 3, "prior__class_images": 0}
    one, other = make_session("none", **settings), make_session("none2", **settings, text_encoder__mode="joint")
    assert Life(one).run() == Life(other).run() == "finished"
    assert result(one) == result(other)


def test_more_steps_than_the_unet_has_train_it_to_the_end(make_session: Made) -> None:
    session = make_session("longer", **{**JOINT, "text_encoder__steps": 350, "unet__steps": 2})
    life = Life(session)
    assert life.run() == "finished"
    assert life.said("plan")[0]["joint_steps"] == 2


def test_no_steps_for_the_unet_leave_nothing_to_train(make_session: Made) -> None:
    with pytest.raises(TrainingError, match=r"unet\.steps is 0, and a text encoder in joint mode"):
        training.train(make_session("nothing", **{**JOINT, "unet__steps": 0}))


def test_another_mode_is_another_recipe(make_session: Made) -> None:
    session = make_session("mode", **JOINT)
    assert Life(session, until=at("unet", 2)).run() == "stopped"
    for change in ({"text_encoder.mode": "first"}, {"unet.ema_decay": 0.9}, {"min_snr_gamma": 5.0}):
        with pytest.raises(TrainingError, match=rf"changed since step 2 of the unet stage: {next(iter(change))} "):
            Life(session.with_config(session.config.changed(change))).run()
