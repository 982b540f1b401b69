"""The loss on fixed noise changes nothing, and a stage that has settled ends at the same step in every life."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from diffusers import DDPMScheduler

from fastdb import cli
from fastdb.checkpoints.progress import progress_of, standing, steps_of
from fastdb.commands import sessions, training
from fastdb.config import Config, StopConfig
from fastdb.errors import ConfigError
from fastdb.images.photos import save_png
from fastdb.models.loading import load_part, load_scheduler, load_tokenizer
from fastdb.models.registry import MINI
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.batches import HELD_OUT, Group
from fastdb.training.caches import LatentCache
from fastdb.training.fixed_loss import LIKENESS, ROWS, fixed_loss, settled
from fastdb.training.schedules import rate_at, without_later_ends
from fastdb.training.stages import Check
from fastdb.world.subjects import SUBJECTS
from tests.training.conftest import outcome, result
from tests.training.test_kill import killed_and_run_again, points
from tests.training.test_trainer import Life

Made = Callable[..., Session]
UNET_ONLY: dict[str, Any] = {"text_encoder__steps": 0, "prior__class_images": 0, "stop__check_loss": True}
ENDS_AT, PLANNED = 10, 60
SETTLING: dict[str, Any] = {
    "resolution": 64,
    "text_encoder.steps": 0,
    "unet.steps": PLANNED,
    # Too low for an improvement: the loss has settled after step 4, the samples of steps 3, 6 and 9 after step 9.
    "unet.learning_rate": 1e-7,
    "prior.class_images": 0,
    "checkpoints.every_steps": 3,
    "samples.every_steps": 3,
    "samples.steps": 2,
    "stop.when": "settled",
    "stop.patience": 2,
    "stop.check_every": 2,
}


def mug(root: Path, **settings: Any) -> Session:
    """A session of a subject of the drawn world on mini, whose samples can be read."""
    photos = root / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(SUBJECTS["mug"].photos()[:3]):
        save_png(picture, photos / f"{number}.png")
    changed = {**SETTLING, **{name.replace("__", "."): value for name, value in settings.items()}}
    return sessions.new("mug", MINI, [photos], token="sks", class_word="mug", root=root, settings=changed)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session whose UNet stage has settled, in one life."""
    session = mug(tmp_path_factory.mktemp("ended"))
    life = Life(session)
    assert life.run() == "finished"
    (note,) = [event for event in life.said("note") if event["kind"] == "stage settled"]
    assert note["subject"] == f"unet step {ENDS_AT} of {PLANNED}"
    assert [event["step"] for event in life.said("check")] == [*range(0, ENDS_AT + 1, 2)]
    return Session.open(session.path)


def test_what_was_decided_and_why_is_in_the_history(ended: Session) -> None:
    (entry,) = ended.record.revised
    assert str(entry).startswith(f"after unet step {ENDS_AT}: unet.settled_after={ENDS_AT} (the loss on fixed noise")
    assert "nor the likeness of samples in 2" in str(entry)
    assert (progress_of(ended)["unet"], steps_of(ended, "unet")) == (ENDS_AT, ENDS_AT)
    figures = [(check[0], *check[1]) for check in standing(ended).checkpoints["unet"].state["checks"]]
    assert (0, "instance") in figures
    assert (6, LIKENESS) in figures
    assert Life(ended).run() == "finished"


@pytest.mark.parametrize("number", points({13}))
def test_killed_around_the_decision(number: int, ended: Session, tmp_path: Path) -> None:
    """The last points are while the checkpoint of the decision is saved and published."""
    session = mug(tmp_path)
    killed_and_run_again(number, session, ENDS_AT)
    session = Session.open(session.path)
    assert result(session) == result(ended)
    assert [str(entry) for entry in session.record.revised] == [str(entry) for entry in ended.record.revised]
    ours, theirs = (standing(one).checkpoints["unet"].state["checks"] for one in (session, ended))
    assert ours == theirs


def test_more_steps_go_on_from_there(ended: Session, copy_here: Callable[[Session], Session]) -> None:
    session = copy_here(ended)
    done = CliRunner().invoke(cli.app, ["extend", str(session.path), "--steps", "2", "--schedule", "hold"])
    assert done.exit_code == 0, done.output
    session = Session.open(session.path)
    assert [(one.after, one.steps) for one in session.extensions] == [(ENDS_AT, 2)]
    assert rate_at(session.config.unet, ENDS_AT) == session.config.unet.extensions[0].learning_rate
    life = Life(session)
    assert life.run() == "finished"
    assert [event["step"] for event in life.said("step")] == [ENDS_AT + 1, ENDS_AT + 2]


def test_the_planned_steps_are_resumed_from_where_it_ended(
    ended: Session, copy_here: Callable[[Session], Session]
) -> None:
    """As a person would: the setting alone changes nothing of a stage that has ended; then from its last step on."""
    session = copy_here(ended)
    off = ["train", str(session.path), "--set", "stop.when=off"]
    done = CliRunner().invoke(cli.app, off)
    assert done.exit_code == 0, done.output
    assert "All steps of mug are done" in done.output
    done = CliRunner().invoke(cli.app, ["train", str(session.path), "--from-step", str(ENDS_AT), "--detach"])
    assert done.exit_code == 0, done.output
    assert f"The UNet of mug trains its planned steps again, {PLANNED} steps in all" in done.output
    running = process.find(session)
    assert running is not None
    running.stop()
    assert outcome(running) == "stopped"
    session = Session.open(session.path)
    assert steps_of(session, "unet") == PLANNED
    assert [entry.change for entry in session.record.revised][1:] == ["unet.settled_after=none"]


def test_from_an_earlier_step_the_planned_steps_follow() -> None:
    config = Config().changed({"unet.steps": 60, "unet.settled_after": [10]})
    assert without_later_ends(config, 10).unet.all_steps == without_later_ends(config, 6).unet.all_steps == 60
    longer = config.changed({"unet.extensions": [{"steps": 5, "schedule": "hold", "learning_rate": 1e-6}]})
    assert longer.unet.all_steps == without_later_ends(longer, 10).unet.all_steps == 15
    # What was trained keeps its rates.
    assert [rate_at(longer.unet, step) for step in range(10)] == [
        rate_at(Config().changed({"unet.steps": 60}).unet, step) for step in range(10)
    ]
    assert rate_at(longer.unet, 15) == 0


def test_a_text_encoder_settles_by_its_loss_alone(make_session: Made) -> None:
    """The recipe of the stage that follows contains how it ended, so a later run resumes."""
    session = make_session(
        text_encoder__steps=20,
        text_encoder__learning_rate=1e-9,
        unet__steps=2,
        prior__class_images=0,
        stop__check_loss=True,
        **{f"stop__{name}": value for name, value in {"when": "settled", "patience": 2}.items()},
        stop__check_every=1,
    )
    assert Life(session).run() == "finished"
    session = Session.open(session.path)
    assert session.config.text_encoder.all_steps == progress_of(session)["text_encoder"] == 2
    training.extend(session, 1)
    assert Life(Session.open(session.path)).run() == "finished"


def test_with_and_without_it_a_run_ends_in_the_same_bytes(make_session: Made) -> None:
    ends = []
    for settings in ({"stop__check_every": 2, "unet__ema_decay": 0.9}, {"stop__check_loss": False}):
        session = make_session(**{**UNET_ONLY, "unet__ema_decay": 0.9, "unet__steps": 5, **settings})
        life = Life(session)
        assert life.run() == "finished"
        assert bool(life.said("check")) == ("stop__check_every" in settings)
        ends.append(result(session))
    assert ends[0] == ends[1]


def test_the_loss_is_that_of_diffusers_scheduler(make_session: Made) -> None:
    """Computed here from the rows by diffusers' scheduler and the untrained UNet."""
    session = make_session(**UNET_ONLY, unet__steps=1, stop__hold_out=2)
    life = Life(session)
    assert life.run() == "finished"
    first = life.said("check")[0]
    assert first["step"] == 0
    assert set(first["losses"]) == {"instance", HELD_OUT}
    plan = life.said("plan")[0]
    assert plan["held_out"] == 2

    from fastdb.training.prepare import image_groups, plan_run

    silent: Any = lambda *_, **__: None  # noqa: E731
    prepared, _, _ = plan_run(Session.open(session.path), silent)
    groups = image_groups(prepared, (), silent)
    assert [group.size for group in groups] == [1, 0]
    assert len(groups[0].latents) == plan["photos"]
    base = ensure_base(session)
    scheduler = DDPMScheduler.from_config(load_scheduler(base.folder).config)
    unet, encoder = (load_part(base.folder, part, torch.float32).eval() for part in ("unet", "text_encoder"))
    tokenizer = load_tokenizer(base.folder)
    rows = fixed_loss(groups, session.config, 1000).batches
    for name, batches in rows.items():
        errors = []
        for batch in batches:
            tokens = tokenizer(list(batch.prompts), padding="max_length", return_tensors="pt").input_ids
            with torch.no_grad():
                noised = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
                predicted = unet(noised, batch.timesteps, encoder(tokens)[0]).sample
            errors += (predicted - batch.noise).square().mean(dim=(1, 2, 3)).tolist()
        assert len(errors) == ROWS
        assert first["losses"][name] == pytest.approx(sum(errors) / ROWS, abs=2e-6)


def test_held_out_images_cannot_change_in_a_begun_session(
    ended: Session, copy_here: Callable[[Session], Session]
) -> None:
    with pytest.raises(ConfigError, match=r"stop\.hold_out 0 -> 1"):
        training.train(copy_here(ended), settings={"stop.hold_out": 1})


def checks(values: list[float], name: str = "instance") -> list[Check]:
    return [Check(10 * number, {name: value}) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("losses", "likenesses", "expected"),
    [
        ([1, 0.9, 0.8, 0.7, 0.6, 0.5], None, False),  # still falls
        ([1, 0.5, 0.5, 0.5, 0.5], None, True),
        ([1, 0.5, 0.5, 0.5], None, False),  # too few
        ([1, 0.5, 0.52, 0.55, 0.6], None, True),  # rises
        ([1, 0.5, 0.499, 0.498, 0.4975], None, True),  # by less than the margin
        ([1, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], False),  # the pictures still improve
        ([1, 0.5, 0.5, 0.5, 0.5], [0.1, 0.4, 0.4, 0.4, 0.3], True),
        ([1, 0.5, 0.5, 0.5, 0.5], [], False),  # no picture yet
    ],
)
def test_a_run_settles_when_nothing_improves(
    losses: list[float], likenesses: list[float] | None, expected: bool
) -> None:
    known = checks(losses) + checks(likenesses or [], LIKENESS)
    reason = settled(known, 0, StopConfig(patience=3), pictures=likenesses is not None)
    assert bool(reason) == expected
    assert not settled(known, 40, StopConfig(patience=3)), "steps that were added begin anew"


def test_what_is_held_out_decides_where_there_is_some() -> None:
    known = [Check(step, {"instance": 1 - step / 10, HELD_OUT: 0.5}) for step in range(6)]
    assert settled(known, 0, StopConfig(patience=3))


@pytest.mark.parametrize(("sizes", "accumulation"), [((1,), 1), ((1, 1), 1), ((2, 6), 1), ((4, 4), 2)])
def test_it_takes_at_most_3_percent(sizes: tuple[int, ...], accumulation: int) -> None:
    """In forward passes; a step has at least two for each of its rows, one of them backwards."""
    latents = LatentCache(torch.zeros(3, 4, 8, 8), torch.ones(3, 4, 8, 8), 1.0)
    groups = [Group(f"group {number}", latents, ("a",) * 3, size) for number, size in enumerate(sizes)]
    fixed = fixed_loss(groups, Config().changed({"gradient_accumulation": accumulation}), 1000)
    rows = sum(len(batch.prompts) for batches in fixed.batches.values() for batch in batches)
    assert rows == ROWS * len(sizes)
    assert max(len(batch.prompts) for batches in fixed.batches.values() for batch in batches) <= sum(sizes)
    assert rows <= 0.03 * 2 * sum(sizes) * accumulation * fixed.every
    assert fixed.every <= rows / (0.03 * 2 * sum(sizes) * accumulation) + 1
    times = [int(time) for batch in fixed.batches["group 0"] for time in batch.timesteps]
    assert times == sorted(times)
    assert len(set(times)) == ROWS
