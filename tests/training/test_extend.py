"""An extended run equals, to the bit, a run planned with those steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from fastdb import cli, interactive
from fastdb.checkpoints.export_parts import export_metadata
from fastdb.checkpoints.progress import how_far, progress_of, standing, steps_of
from fastdb.commands import training
from fastdb.errors import ConfigError, SessionBusy, TrainingError
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.disk_estimate import need
from fastdb.training.schedules import rate_at
from tests.training.conftest import published, result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
SHORT: dict[str, Any] = {
    "text_encoder__steps": 2,
    "unet__steps": 4,
    "unet__ema_decay": 0.9,
    "prior__class_images": 0,
    "captions__caption_dropout": 0.3,
    "checkpoints__every_steps": 2,
}
REWARM, DECAY, HOLD = (
    {"steps": 4, "schedule": "rewarm", "learning_rate": 4e-4},
    {"steps": 3, "schedule": "decay", "learning_rate": 2.5e-4},
    {"steps": 2, "schedule": "hold", "learning_rate": 1e-4},
)
ALL = 4 + 4 + 3 + 2


@pytest.fixture(scope="module")
def from_the_beginning(make_session: Made) -> Session:
    """A session that had its extensions before it began, trained without an interruption; every fourth step is kept."""
    settings = {**SHORT, "unet__extensions": [REWARM, DECAY, HOLD], "checkpoints__keep_every": 4}
    session = make_session("whole", **settings)
    life = Life(session)
    assert life.run() == "finished"
    plan = life.said("plan")[0]["stages"]["unet"]
    assert (plan["own_steps"], plan["learning_rate"]) == (4, 5e-4)
    assert plan["extensions"] == ("4 steps, rewarm at 0.0004", "3 steps, decay at 0.00025", "2 steps, hold at 0.0001")
    told = [
        (event["step"], event["steps"], event["learning_rate"])
        for event in life.said("step")
        if event["stage"] == "unet"
    ]
    assert told == [(step + 1, ALL, rate_at(session.config.unet, step)) for step in range(ALL)]
    return Session.open(session.path)


@pytest.fixture
def base(trained_once: Made, copy_here: Callable[[Session], Session]) -> Session:
    """A session trained to the end it had at first."""

    def train(session: Session) -> None:
        assert Life(session).run() == "finished"

    return copy_here(trained_once("base", train, "base", **SHORT))


def more(session: Session, one: dict[str, Any]) -> Session:
    return training.extend(session, one["steps"], schedule=one["schedule"], learning_rate=one["learning_rate"])


def test_an_extension_equals_a_run_that_had_it_from_the_beginning(base: Session, from_the_beginning: Session) -> None:
    """Extended after its end, stopped within the extension, extended again there, and again after the end."""
    session = more(base, REWARM)
    assert Life(session, until=at("unet", 6)).run() == "stopped"
    session = more(session, DECAY)
    assert Life(session, until=at("unet", 7)).run() == "stopped"
    assert Life(Session.open(session.path)).run() == "finished"
    session = more(session, HOLD)
    assert Life(session).run() == "finished"
    session = Session.open(session.path)
    assert session.config.unet == from_the_beginning.config.unet
    assert result(session) == result(from_the_beginning)
    assert list(result(session)) == [
        "text_encoder-000002/optimizer.safetensors",
        "text_encoder-000002/text_encoder.safetensors",
        "unet-000013/optimizer.safetensors",
        "unet-000013/unet.safetensors",
        "unet-000013/unet_ema.safetensors",
    ]


def test_what_was_done_before_is_untouched(base: Session, from_the_beginning: Session) -> None:
    """The last checkpoint of the base is that of the longer run at this step, so there was no other way here."""
    for name in ("unet", "unet_ema", "optimizer"):
        assert published(base, 4, name) == published(from_the_beginning, 4, name)


def test_another_schedule_is_another_result(base: Session, from_the_beginning: Session) -> None:
    """What the tests above compare does differ where it should."""
    assert Life(more(base, {**REWARM, "schedule": "hold"})).run() == "finished"
    assert published(base, 8, "unet") != published(from_the_beginning, 8, "unet")


def test_every_count_follows(base: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session = interactive.extend(base, 3, schedule="decay", learning_rate=0.00025)
    expected = "Extended base after step 4 by 3 steps, decay at 0.00025: 7 steps in all. Train them with: fastdb train"
    assert expected in capsys.readouterr().out
    assert (steps_of(session, "unet"), steps_of(session, "text_encoder")) == (7, 2)
    assert how_far(session, progress_of(session)) == "text_encoder 2/2, unet 4/7"
    assert set(need(session, _base_of(session)).checkpoints) == {"unet"}
    life = Life(session)
    assert life.run() == "finished"
    plan = {name: (stage["steps"], stage["done"]) for name, stage in life.said("plan")[0]["stages"].items()}
    assert plan == {"text_encoder": (2, 2), "unet": (7, 4)}
    assert life.said("plan")[0]["begins"] == "unet step 4"
    assert "unet: 4 of " in " ".join(life.said("plan")[0]["lines"]), "which older consoles print"
    assert [(event["step"], event["steps"]) for event in life.said("step")] == [(5, 7), (6, 7), (7, 7)]
    assert standing(session).checkpoints["unet"].state["steps"] == 7
    assert Life(session).run() == "finished", "nothing is left to do"


def _base_of(session: Session) -> Any:
    from fastdb.models.resolve import ensure_base

    return ensure_base(session).folder


def test_an_extension_is_in_the_history_and_in_the_export(base: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fastdb.extended" not in export_metadata(base, ensure_base(base), {"text_encoder": 0, "unet": 1})
    session = more(more(base, REWARM), HOLD)
    assert [one.model_dump(exclude={"when"}) for one in session.record.extended] == [
        {"after": 4, **REWARM},
        {"after": 8, **HOLD},
    ]
    assert [run.begins for run in session.record.runs] == ["text_encoder step 0"]
    capsys.readouterr()
    interactive.show(session)
    out = capsys.readouterr().out
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.search(rf"extended +after step 4 by 4 steps, rewarm at 0\.0004, {when}\n", out), out
    assert re.search(r"extended +after step 8 by 2 steps, hold at 0\.0001, ", out), out
    told = export_metadata(session, ensure_base(session), {"text_encoder": 0, "unet": 1})["fastdb.extended"]
    assert told == "after step 4 by 4 steps, rewarm at 0.0004; after step 8 by 2 steps, hold at 0.0001"
    assert Session.open(session.path) == session


def test_an_extension_may_be_added_before_the_end_or_the_beginning(make_session: Made) -> None:
    session = make_session("early", **SHORT)
    session = training.extend(session, 3)
    assert session.config.unet.extensions[0].model_dump() == {"steps": 3, "schedule": "rewarm", "learning_rate": 2.5e-4}
    assert Life(session, until=at("unet", 2)).run() == "stopped"
    session = training.extend(session, 2, schedule="hold")
    life = Life(session)
    assert life.run() == "finished"
    assert life.said("step")[-1]["step"] == 9
    session = Session.open(session.path)
    assert [one.after for one in session.record.extended] == [4, 7]
    assert len(session.record.runs) == 2, "what the trainer noted meanwhile stays"


@pytest.fixture(scope="module")
def within(make_session: Made) -> Session:
    """A session stopped in its first extension of two."""
    session = make_session("within", **SHORT, unet__extensions=[REWARM, DECAY])
    assert Life(session, until=at("unet", 5)).run() == "stopped"
    return Session.open(session.path)


@pytest.mark.parametrize(
    "change",
    [
        [],
        [DECAY],
        [DECAY, REWARM],
        [{**REWARM, "steps": 5}, DECAY],
        [{**REWARM, "schedule": "decay"}, DECAY],
        [{**REWARM, "learning_rate": 1e-4}, DECAY],
    ],
)
def test_one_that_has_begun_cannot_be_changed_or_removed(
    within: Session, change: list[dict[str, Any]], copy: Callable[[Session], Session]
) -> None:
    with pytest.raises(ConfigError, match=r"unet\.extensions"):
        training.train(within, settings={"unet.extensions": change})
    within = copy(within)
    within = within.with_config(within.config.changed({"unet.extensions": change}))
    before = (within.path / "session.yaml").read_bytes()
    with pytest.raises(TrainingError) as caught:
        training.train(within)
    told = "changed since step 5 of the unet stage: unet.extensions 4 steps, rewarm at 0.0004 -> "
    assert told in str(caught.value)
    assert "--restart" in str(caught.value)
    assert (within.path / "session.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        [REWARM],
        *(pytest.param(more, marks=pytest.mark.full) for more in ([REWARM, HOLD], [REWARM, HOLD, DECAY])),
        [REWARM, DECAY, HOLD],
    ],
)
def test_one_that_has_not_begun_can(
    within: Session, change: list[dict[str, Any]], copy: Callable[[Session], Session]
) -> None:
    session = copy(within)
    session = session.with_config(session.config.changed({"unet.extensions": change}))
    life = Life(session)
    assert life.run() == "finished"
    assert life.said("step")[-1]["step"] == 4 + sum(one["steps"] for one in change)


def test_just_before_it_begins_it_can_still_be_changed(base: Session) -> None:
    session = more(base, REWARM)
    session = session.with_config(session.config.changed({"unet.extensions": [HOLD]}))
    life = Life(session)
    assert life.run() == "finished"
    assert [event["learning_rate"] for event in life.said("step")] == [1e-4, 1e-4]


def test_the_steps_before_it_cannot_be_changed_any_more(base: Session) -> None:
    session = more(base, HOLD)
    with pytest.raises(ConfigError, match=r"unet\.steps 4 -> 5"):
        training.train(session, settings={"unet.steps": 5})
    session = session.with_config(session.config.changed({"unet.steps": 5}))
    with pytest.raises(TrainingError, match=r"unet\.steps 4 -> 5.* fastdb extend"):
        training.train(session)


@pytest.mark.full
def test_beside_it_the_text_encoder_trains_as_long_as_it_has_steps(make_session: Made) -> None:
    """Joint mode: the extension is the UNet's alone but for the text encoder's own steps, by its own rate."""
    settings = {**SHORT, "text_encoder__mode": "joint", "text_encoder__steps": 3, "unet__steps": 2}
    session = make_session("joint", **settings)
    assert Life(session).run() == "finished"
    session = training.extend(session, 3, schedule="hold", learning_rate=1e-4)
    life = Life(session)
    assert life.run() == "finished"
    assert life.said("plan")[0]["joint_steps"] == 3
    whole = make_session(
        "joint",
        **settings,
        unet__extensions=[{"steps": 3, "schedule": "hold", "learning_rate": 1e-4}],
        checkpoints__keep_every=1,
    )
    assert Life(whole).run() == "finished"
    assert result(session) == result(whole)
    encoder = [published(whole, step, "text_encoder") for step in (2, 3, 4, 5)]
    assert [one == encoder[1] for one in encoder] == [False, True, True, True]


@pytest.mark.parametrize(
    ("steps", "given", "told"),
    [
        (0, {}, "steps is 0, but must be at least 1"),
        (5, {"learning_rate": 0}, "learning_rate is 0, but must be greater than 0"),
        (5, {"schedule": "cosine"}, "schedule is 'cosine', but must be 'hold', 'rewarm' or 'decay'"),
    ],
)
def test_what_is_out_of_bounds_is_refused(make_session: Made, steps: int, given: dict[str, Any], told: str) -> None:
    session = make_session("bounds", **SHORT)
    before = (session.path / "session.yaml").read_bytes()
    with pytest.raises(ConfigError, match=re.escape(told)):
        training.extend(session, steps, **given)
    assert (session.path / "session.yaml").read_bytes() == before


def test_a_session_that_is_being_trained_is_not_extended(make_session: Made) -> None:
    session = make_session("busy", **{**SHORT, "unet__steps": 2000})
    running = process.start(session)
    try:
        with pytest.raises(
            SessionBusy, match=r"training is running; its step count cannot be changed now.*fastdb stop busy"
        ):
            training.extend(session, 5)
    finally:
        running.stop()
        list(running.follow())
    assert Session.open(session.path).config.unet.extensions == ()


def test_extensions_of_which_no_step_was_trained_can_be_removed(make_session: Made) -> None:
    session = make_session("planned", unet__steps=4)
    for steps in (2, 3):
        training.extend(session, steps)
    (session.checkpoints / "unet-000006").mkdir()
    done = CliRunner().invoke(cli.app, ["extend", str(session.path), "--remove"])
    assert done.output == "Removed 1 extension of which no step was trained: 6 steps in all\n"
    config = Session.open(session.path).config
    assert [extension.steps for extension in config.unet.extensions] == [2]
    with pytest.raises(ConfigError, match="has no extension of which no step was trained"):
        training.remove_extensions(session)
    (session.checkpoints / "unet-000006").rmdir()
    assert training.remove_extensions(session).config == session.config
