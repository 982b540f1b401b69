"""The trainer, stopped, started twice, with changed settings or damaged files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.compressed_checkpoint import raw_file
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.retention import KEEP
from fastdb.commands import training
from fastdb.console import sentence
from fastdb.console.views import _plan_lines
from fastdb.errors import ConfigError, FastDBError, TrainingError
from fastdb.models.resolve import ensure_base
from fastdb.reporting import Note
from fastdb.sessions.events import read_events
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.batches import Batch
from fastdb.training.loop import Loop
from fastdb.training.prepare import plan_run
from fastdb.training.trainer import Trainer
from tests.other_models import another
from tests.training.conftest import outcome, result

Made = Callable[..., Session]
Copied = Callable[[Session], Session]
EIGHT_BIT = importlib.util.find_spec("bitsandbytes") is not None


class Life:
    """One life of a trainer in this process; `until` stops it after the first event it says yes to."""

    def __init__(self, session: Session, until: Callable[[dict[str, Any]], bool] = lambda event: False) -> None:
        self.events: list[dict[str, Any]] = []
        self._until, self._stop = until, threading.Event()
        self.trainer = Trainer(session, self._tell, self._stop)

    def run(self) -> str:
        return self.trainer.run()

    def _tell(self, event: str, /, **fields: Any) -> None:
        self.events.append({"event": event, **fields})
        if self._until(self.events[-1]):
            self._stop.set()

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def findings(self) -> list[str]:
        """The sentences of all notes."""
        return findings(self.events)


def findings(events: list[dict[str, Any]]) -> list[str]:
    """The sentences of all notes among events."""
    notes = [event for event in events if event["event"] in ("note", "warning")]
    return [
        sentence(Note(event["kind"], event["subject"], event["reason"])) if "kind" in event else event["message"]
        for event in notes
    ]


def at(stage: str, step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "step" and (event["stage"], event["step"]) == (stage, step)


@pytest.fixture
def half(trained_once: Made, copy_here: Copied) -> Session:
    """A session stopped after two steps of the UNet stage."""

    def train(session: Session) -> None:
        assert Life(session, until=at("unet", 2)).run() == "stopped"

    settings = {"text_encoder__steps": 3, "unet__steps": 6, "prior__class_images": 0}
    return copy_here(trained_once("half", train, "half", **settings))


def test_sigterm_saves_the_step_it_is_in_and_going_on_equals_never_stopping(
    make_session: Made, straight: Session
) -> None:
    session = make_session()
    running = process.start(session)
    for event in running.follow():
        if at("unet", 7)(event):
            running.stop()
    said = read_events(running.events)
    assert said[-1]["outcome"] == "stopped"
    saved = [event for event in said if event["event"] == "saved"]
    assert saved[-1]["step"] >= 7
    assert saved[-1]["step"] == [event for event in said if event["event"] == "step"][-1]["step"]
    assert outcome(process.start(session)) == "finished"
    assert result(session) == result(straight)
    runs = Session.open(session.path).record.runs
    assert [run.outcome for run in runs] == ["stopped", "finished"]
    assert runs[1].begins == f"unet step {saved[-1]['step']}"


class Many(NamedTuple):
    """Two equal sessions with many settings, one trained without an interruption, and what its loop computed."""

    straight: Session
    stopped: Session
    plan: dict[str, Any]
    prompts: list[str]
    losses: list[tuple[float, float, float]]


@pytest.fixture(scope="module")
def many(make_session: Made) -> Many:
    """8-bit moments, dropped captions, accumulation, checkpointing and samples; the full suite tests each alone."""
    settings = {
        "text_encoder__steps": 3,
        "unet__steps": 4,
        "optimizer__name": "adamw8bit" if EIGHT_BIT else "adamw",
        "captions__caption_dropout": 0.5,
        "captions__dropout": 0.3,
        "prior__weight": 0.5,
        "gradient_accumulation": 2,
        "gradient_checkpointing": True,
        "samples__every_steps": 2,
        "samples__steps": 2,
    }
    one, other = (make_session(f"all{number}", **settings) for number in range(2))
    for session in (one, other):
        for image in session.instance_images.glob("*.png"):
            (session.captions / f"{image.stem}.txt").write_text("on a table")
    prompts: list[str] = []
    losses: list[tuple[float, float, float]] = []
    honest = Loop.loss

    def recorded(self: Loop, batch: Batch) -> Any:
        parts = honest(self, batch)
        prompts.extend(batch.prompts[: batch.instances])
        losses.append(tuple(float(part.detach()) for part in parts))  # type: ignore[arg-type]
        return parts

    life = Life(one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "loss", recorded)
        assert life.run() == "finished"
    return Many(one, other, life.said("plan")[0], prompts, losses)


def test_resume_is_exact_with_many_settings_together(many: Many) -> None:
    one, other = many.straight, many.stopped
    assert Life(other, until=at("text_encoder", 1)).run() == "stopped"
    assert Life(other, until=at("unet", 3)).run() == "stopped"
    moments = load_file(standing(other).checkpoints["unet"].path / "optimizer.safetensors").values()
    assert any(value.dtype == torch.uint8 for value in moments) == EIGHT_BIT
    assert Life(other).run() == "finished"
    assert result(one) == result(other)
    assert standing(one).checkpoints["unet"].state["host"]["threads"] == 1, "a small model is slower on more"
    samples = sorted(path.name for path in one.samples.glob("*.png"))
    assert samples == [
        f"{stage}-1.png" for stage in ("text_encoder-000002", "text_encoder-000003", "unet-000002", "unet-000004")
    ]
    for name in samples:
        assert (one.samples / name).read_bytes() == (other.samples / name).read_bytes()


def test_the_plan_mentions_captions_only_where_there_are_some(make_session: Made) -> None:
    session = make_session("uncaptioned", captions__caption_dropout=0.5)

    def lines() -> str:
        plans: list[dict[str, Any]] = []
        plan_run(session, lambda kind, **fields: plans.append(fields) if kind == "plan" else None)
        return " ".join(_plan_lines(plans[0]))

    assert "aption" not in lines()
    (session.captions / "cat.txt").write_text("on a table")
    assert "Captions dropped 50% of the time" in lines()


def test_captions_are_dropped_in_some_turns_of_the_training(many: Many) -> None:
    assert (many.plan["captions_dropped"], many.plan["prompts_dropped"]) == (0.5, 0.3)
    assert 0 < many.prompts.count("") < len(many.prompts) / 2
    captioned = [prompt.endswith("on a table") for prompt in many.prompts]
    assert len(captioned) == 2 * (3 + 4)
    assert 0 < sum(captioned) < len(captioned)


def test_the_class_images_add_to_the_trained_loss_by_their_weight(many: Many) -> None:
    assert all(prior > 0 for _, _, prior in many.losses)
    assert [loss for loss, _, _ in many.losses] == pytest.approx([own + prior / 2 for _, own, prior in many.losses])


def test_accumulated_microbatches_are_one_step_of_the_optimizer(many: Many) -> None:
    last = complete(many.straight.local_checkpoints, "unet")[-1]
    state = {**load_file(last.path / "optimizer.safetensors"), **last.state["optimizer"]}
    assert {int(value) for name, value in state.items() if name.endswith("/step")} == {4}


@pytest.mark.full
@pytest.mark.parametrize("name", ["adamw8bit", "adamw"])
def test_resume_is_exact_with_each_optimizer(make_session: Made, name: str) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"text_encoder__steps": 2, "unet__steps": 6, "optimizer__name": name, "batch_size": 2}
    one, other = (make_session(f"{name}{number}", **settings) for number in range(2))
    assert Life(one).run() == "finished"
    assert Life(other, until=at("unet", 4)).run() == "stopped"
    if name == "adamw8bit":
        kept = load_file(standing(other).checkpoints["unet"].path / "optimizer.safetensors").values()
        assert any(value.dtype == torch.uint8 for value in kept), "no tensor is large enough for 8 bit"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)


@pytest.mark.full
def test_captions_left_out_now_and_then_resume_exactly(make_session: Made) -> None:
    settings = {"text_encoder__steps": 2, "unet__steps": 4, "prior__class_images": 0}
    sessions = [
        make_session(f"told{n}", captions__caption_dropout=share, **settings) for n, share in enumerate((0.5, 0.5, 0))
    ]
    for session in sessions:
        for image in session.instance_images.glob("*.png"):
            (session.captions / f"{image.stem}.txt").write_text("on a table")
    one, other, always = sessions
    life = Life(one)
    assert (life.run(), Life(always).run()) == ("finished", "finished")
    assert life.said("plan")[0]["captions_dropped"] == 0.5
    assert Life(other, until=at("text_encoder", 1)).run() == "stopped"
    assert Life(other, until=at("unet", 2)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)
    assert result(one) != result(always)
    assert standing(one).checkpoints["unet"].state["host"]["threads"] == 1, "a small model is slower on more"


@pytest.mark.full
def test_accumulation_checkpointing_and_samples_resume_exactly(make_session: Made) -> None:
    settings = {
        "text_encoder__steps": 3,
        "unet__steps": 4,
        "gradient_accumulation": 2,
        "gradient_checkpointing": True,
        "samples__every_steps": 2,
        "samples__steps": 2,
    }
    one, other = (make_session(f"many{number}", **settings) for number in range(2))
    assert Life(one).run() == "finished"
    assert Life(other, until=at("text_encoder", 1)).run() == "stopped"
    assert Life(other, until=at("unet", 3)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)
    samples = sorted(path.name for path in one.samples.glob("*.png"))
    assert samples == [
        f"{stage}-1.png" for stage in ("text_encoder-000002", "text_encoder-000003", "unet-000002", "unet-000004")
    ]
    for name in samples:
        assert (one.samples / name).read_bytes() == (other.samples / name).read_bytes()


@pytest.mark.full
def test_samples_do_not_change_the_training(make_session: Made) -> None:
    settings = {"text_encoder__steps": 2, "unet__steps": 3}
    plain, sampled = make_session("plain", **settings), make_session("sampled", **settings, samples__every_steps=1)
    assert Life(plain).run() == Life(sampled).run() == "finished"
    assert result(plain) == result(sampled)
    assert len(list(sampled.samples.glob("*.png"))) == 5


def test_a_finished_session_is_left_as_it_is(straight: Session, copy: Copied) -> None:
    session = copy(straight)
    before = result(session)
    life = Life(session)
    assert life.run() == "finished"
    assert [event["event"] for event in life.events] == ["plan"]
    assert result(session) == before


@pytest.fixture(scope="module")
def kept(trained_once: Made) -> Session:
    """A session trained to its end, of which earlier checkpoints are kept for good too."""

    def train(session: Session) -> None:
        assert Life(session).run() == "finished"

    return trained_once("kept", train, "kept", text_encoder__steps=3, unet__steps=7, checkpoints__keep_every=3)


def test_a_damaged_newest_checkpoint_is_skipped_and_the_result_is_the_same(kept: Session, copy: Copied) -> None:
    session = copy(kept)
    last = session.checkpoints / "unet-000007" / "unet.packed"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    life = Life(session)
    assert life.run() == "finished"
    assert "Skipping checkpoint unet-000007: unet.packed has changed since it was written" in life.findings()
    assert life.said("stage")[0]["step"] == 6
    assert any("set-aside-1" in finding for finding in life.findings())
    assert (session.checkpoints / "set-aside-1" / "unet-000007" / "unet.packed").read_bytes() == bytes(data)
    assert result(session) == result(kept)


def test_of_a_damaged_checkpoint_on_this_machine_the_published_one_is_taken(make_session: Made) -> None:
    session = make_session("twofold", text_encoder__steps=0, unet__steps=2, prior__class_images=0)
    assert Life(session).run() == "finished"
    before = result(session)
    local = session.local_checkpoints / "unet-000002"
    data = bytearray((local / "unet.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (local / "unet.safetensors").write_bytes(data)
    life = Life(Session.open(session.path))
    assert life.run() == "finished"
    assert "Skipping checkpoint unet-000002: unet.safetensors has changed since it was written" in life.findings()
    assert not life.said("step")
    assert standing(session).checkpoints["unet"].path == session.checkpoints / "unet-000002"
    assert result(session) == before


def test_a_lost_text_encoder_is_trained_again_and_the_unet_kept(straight: Session, copy: Copied) -> None:
    session = copy(straight)
    (session.checkpoints / "text_encoder-000006" / "MANIFEST.json").unlink()
    life = Life(session)
    assert life.run() == "finished"
    assert {event["stage"] for event in life.said("stage")} == {"text_encoder"}
    assert result(session) == result(straight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unet.learning_rate": 1e-3}, "unet.learning_rate 0.0005 -> 0.001"),
        ({"seed": 5}, "seed 11 -> 5"),
        (
            {"unet.steps": 9, "text_encoder.steps": 5},
            "changed since step 3 of the text_encoder stage: text_encoder.steps 3 -> 5",
        ),
        ({"captions.instance_prompt": "a photo of zwx cup"}, "captions.instance_prompt"),
    ],
)
def test_a_changed_recipe_is_refused_with_what_changed(half: Session, change: dict[str, Any], told: str) -> None:
    folders = half.checkpoint_folders
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {path.parent for path in before} >= {folder / "unet-000002" for folder in folders}
    with pytest.raises(TrainingError) as caught:
        Life(half.with_config(half.config.changed(change))).run()
    assert told in str(caught.value)
    assert "--restart" in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


def test_a_refused_change_leaves_the_session_as_it_was(half: Session) -> None:
    before = (half.path / "session.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"unet\.steps 6 -> 9"):
        training.train(half, settings={"unet.steps": 9})
    assert (half.path / "session.yaml").read_bytes() == before


def test_what_the_result_does_not_depend_on_may_change_in_between(half: Session) -> None:
    life = Life(half.with_config(half.config.changed({"checkpoints.every_steps": 1, "samples.every_steps": 3})))
    assert life.run() == "finished"
    assert [event["step"] for event in life.said("saved")] == [3, 4, 5, 6]


def test_the_unets_settings_may_change_until_its_stage_begins(make_session: Made) -> None:
    session = make_session("early", text_encoder__steps=3, unet__steps=2, prior__class_images=0)
    assert Life(session, until=at("text_encoder", 2)).run() == "stopped"
    session = Session.open(session.path)
    assert Life(session.with_config(session.config.changed({"unet.learning_rate": 1e-3}))).run() == "finished"


def test_a_new_or_lost_photo_is_noticed(half: Session) -> None:
    photo = sorted(half.instance_images.glob("*.png"))[0]
    photo.rename(photo.with_name("other.png"))
    with pytest.raises(TrainingError, match=r"was removed; other\.png was added"):
        Life(half).run()


def test_another_base_model_is_noticed(half: Session, mini: Path, tmp_path: Path) -> None:
    other = another(mini, tmp_path / "other")
    record = half.record.base_model.model_copy(update={"folder": str(other)})
    moved = Session(half.path, half.record.model_copy(update={"base_model": record}))
    with pytest.raises(TrainingError, match="this base model has other weights than the session began with"):
        Life(moved).run()


def test_restart_begins_anew_and_loses_nothing(straight: Session, copy: Copied) -> None:
    session = copy(straight)
    before = result(session)
    assert training.train(session, restart=True) == "finished"
    assert result(session) == before
    aside = session.checkpoints / "set-aside-1"
    assert {path.name for path in aside.iterdir()} >= {"unet-000010", "text_encoder-000006"}
    unet = raw_file(aside / "unet-000010" / "unet.packed", ensure_base(session).folder)
    assert unet.read_bytes() == before["unet-000010/unet.safetensors"]


def test_a_second_trainer_is_refused_and_a_second_caller_follows(make_session: Made, capsys: Any) -> None:
    session = make_session("twice", unet__steps=60)
    running = process.start(session)
    while not any(event["event"] == "step" for event in read_events(running.events)):
        assert running.alive()
        time.sleep(0.05)
    found = process.find(session)
    assert found is not None
    assert found.pid == running.pid
    rival = process.start(session)
    end = list(rival.follow())[-1]
    assert (end["outcome"], "another process is training this session" in end["message"]) == ("failed", True)
    # The one who came too late has not put itself in the place of the one who trains.
    found = process.find(session)
    assert found is not None
    assert found.pid == running.pid
    with pytest.raises(ConfigError, match="training is running with other settings"):
        training.train(session, settings={"unet.steps": 61})
    os.kill(running.pid, signal.SIGINT)
    assert outcome(running) == "stopped"
    assert process.find(session) is None


def test_a_killed_trainer_is_told_apart_from_one_that_ended(make_session: Made) -> None:
    session = make_session("killed")
    running = process.start(session)
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"was killed \(SIGKILL\), probably out of memory.*resumes from the last"):
        list(running.follow())


def broken_package(folder: Path) -> Path:
    """A site hook that breaks the trainer when it first opens odd.png, in the trainer's own process only."""
    folder = folder / "broken"
    folder.mkdir()
    text = """
        import sys
        opened = []
        def hook(event, arguments):
            if event == "open" and str(arguments[0]).endswith("odd.png") and not opened:
                opened.append(arguments[0])
                1 / 0
        if "fastdb.training" in " ".join(sys.orig_argv):
            sys.addaudithook(hook)
    """
    (folder / "sitecustomize.py").write_text(textwrap.dedent(text))
    return folder


@pytest.mark.usefixtures("real_processes")
def test_a_bug_keeps_its_traceback_and_modules_in_the_current_folder_are_not_imported(
    make_session: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` without -P imports them: the trainer died, or ran foreign code. The bug comes after its imports."""
    marker = tmp_path / "imported"
    (tmp_path / "fastdb").mkdir()
    for name in ("torch.py", "json.py", "fastdb/__init__.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'a').write(__name__)")
    session = make_session("elsewhere", environment__pass=["PYTHONPATH"])
    (session.instance_images / "odd.png").write_bytes((session.instance_images / "cat.png").read_bytes())
    monkeypatch.setenv("PYTHONPATH", str(broken_package(session.path.parent)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        training.train(session)
    assert not marker.exists()


def test_class_images_are_made_once_and_a_persons_own_count(make_session: Made, photos: list[Path]) -> None:
    session = make_session("classes", text_encoder__steps=0, unet__steps=1, prior__class_images=3)
    own = session.class_images / "a_mug_of_mine.png"
    own.write_bytes(photos[2].read_bytes())
    life = Life(session)
    assert life.run() == "finished"
    made = sorted(path.name for path in session.class_images.glob("*.png"))
    assert made == ["a_mug_of_mine.png", "class-0001.png", "class-0002.png"]
    assert [event["done"] for event in life.said("progress") if event["task"] == "class images"] == [1, 2]
    other = make_session("classes2", text_encoder__steps=0, unet__steps=1, prior__class_images=3)
    assert Life(other).run() == "finished"
    assert (other.class_images / "class-0001.png").read_bytes() == (
        session.class_images / "class-0001.png"
    ).read_bytes()


def test_every_step_and_the_plan_are_told(straight: Session) -> None:
    log = next(straight.logs.glob("*.jsonl"))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[0]["event"] == "plan"
    stages = {name: (stage["steps"], stage["done"]) for name, stage in events[0]["stages"].items()}
    assert stages == {"text_encoder": (6, 0), "unet": (10, 0)}
    steps = [event for event in events if event["event"] == "step"]
    assert [(event["stage"], event["step"]) for event in steps] == [
        *(("text_encoder", step) for step in range(1, 7)),
        *(("unet", step) for step in range(1, 11)),
    ]
    assert steps[0]["learning_rate"] == pytest.approx(1e-4)
    assert steps[5]["learning_rate"] == pytest.approx(1e-4 / 6)
    assert steps[-1]["learning_rate"] == pytest.approx(5e-4 / 10)
    assert all(event["prior_loss"] > 0 for event in steps)
    assert events[-1] == {"event": "end", "outcome": "finished"}
    saved = [(event["stage"], event["step"]) for event in events if event["event"] == "saved"]
    assert saved == [("text_encoder", step) for step in (3, 6)] + [("unet", step) for step in (3, 6, 9, 10)]


def test_old_checkpoints_go_only_under_two_newer_ones(make_session: Made) -> None:
    session = make_session("older", text_encoder__steps=0, unet__steps=11, prior__class_images=0)
    there: dict[int, list[int]] = {}

    def look(event: dict[str, Any]) -> bool:
        if event["event"] == "saved":
            there[event["step"]] = steps_in(session.local_checkpoints)
        return False

    assert Life(session, until=look).run() == "finished"
    assert {step: kept[-2:] for step, kept in there.items()} == {3: [3], 6: [3, 6], 9: [6, 9], 11: [9, 11]}
    assert all(len(kept) <= 3 for kept in there.values()), "one more while it is published"


def test_after_a_run_the_last_of_each_stage_is_published_and_alone_on_this_machine(straight: Session) -> None:
    names = ["text_encoder-000006", "unet-000010"]
    assert sorted(path.name for path in straight.local_checkpoints.iterdir()) == names
    assert {path.name for path in straight.checkpoints.iterdir()} >= set(names)
    # Which of those before them were published depends on how fast that went.
    assert all(len(steps_in(straight.checkpoints, stage)) <= KEEP for stage in ("text_encoder", "unet"))


def test_those_to_be_kept_are_published_and_stay(kept: Session) -> None:
    assert steps_in(kept.checkpoints) == [3, 6, 7]


def steps_in(folder: Path, stage: str = "unet") -> list[int]:
    return [one.step for one in complete(folder, stage)]


def test_a_fault_of_the_person_is_one_line_from_the_trainers_process(make_session: Made) -> None:
    session = make_session("emptied")
    for path in session.instance_images.glob("*.png"):
        path.unlink()
    with pytest.raises(FastDBError, match="the folder has no instance images"):
        training.train(session)
    end = list(process.start(session).follow())[-1]
    assert end["outcome"] == "failed"
    assert "the folder has no instance images" in end["message"]
