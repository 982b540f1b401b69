"""Every form against every state of a session: nothing is lost, changed or ignored in silence."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from filelock import FileLock

from fastdb import notebook
from fastdb.commands import sessions, training
from fastdb.config import Config
from fastdb.errors import ConfigError, FastDBError, SessionBusy, TrainingError
from fastdb.notebook import train_cell
from fastdb.runtime.paths import work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.training.test_trainer import Life, at

SETTINGS = {
    "token.try": "off",
    "text_encoder.steps": 1,
    "unet.steps": 3,
    "prior.class_images": 0,
    "checkpoints.every_steps": 1,
}
FRESH: dict[str, Any] = {"base_model": "mini"}
"""The form as it is opened on another day, with the session's base model."""
SAME: dict[str, Any] = {"base_model": "mini", "token": "sks", "class_word": "mug", "numbers": {"unet_steps": "3"}}
"""The form as it was filled in when the session was made."""
CHANGED: dict[str, Any] = {**SAME, "token": "ohwx", "numbers": {"unet_steps": "9", "resolution": "128"}}
"""The form with other values."""
RESET: dict[str, Any] = {"base_model": "sd15", "numbers": {"unet_steps": "", "resolution": ""}}
"""The form as it ships, with the name of the session."""
FORMS = {"fresh": FRESH, "same": SAME, "changed": CHANGED, "reset": RESET}
STATES = ("new", "begun", "done", "extended", "running here", "running elsewhere")


@pytest.fixture(scope="module")
def trained(common: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a session that was not trained (`new`), one stopped half way (`begun`) and one trained (`done`)."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    root = common / "truth"
    with FileLock(common / "truth.lock"):
        if not (root / "made").exists():
            photo = tmp_path_factory.mktemp("photo") / "cup.png"
            Image.fromarray(data.coffee()).save(photo)
            words = {"token": "sks", "class_word": "mug", "root": root}
            sessions.new("new", "mini", [photo], settings=SETTINGS, **words)
            half = sessions.new("begun", "mini", [photo], settings=SETTINGS, **words)
            assert Life(half, until=at("unet", 1)).run() == "stopped"
            sessions.new("done", "mini", [photo], settings=SETTINGS, **words)
            training.train("done", root=root)
            (root / "made").touch()
    return root


@pytest.fixture(autouse=True)
def _sessions(sessions_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    sessions_folder.mkdir()
    monkeypatch.setattr(train_cell, "_started_over", set())


@contextmanager
def in_state(state: str, trained: Path, root: Path) -> Iterator[Session]:
    """A session named mug in one of `STATES`."""
    source = {"new": "new", "begun": "begun", "running here": "begun", "running elsewhere": "begun"}.get(state, "done")
    shutil.copytree(trained / source, root / "mug")
    session = Session.open("mug")
    with ExitStack() as stack:
        if state == "extended":
            training.extend(session, 1)
        elif state == "running here":
            stack.enter_context(running_here(session))
        elif state == "running elsewhere":
            now = datetime.now(UTC)
            lease_file.write(
                session.path,
                lease_file.Lease(
                    owner="ann",
                    host="other",
                    since=now,
                    beat=now,
                    beats=3,
                    term=9,
                    token="a" * 32,
                    machine="m",
                    boot="b",
                    pid=7,
                    began=1,
                ),
            )
        yield Session.open("mug")


@contextmanager
def running_here(session: Session) -> Iterator[None]:
    """A trainer that holds the session's lock and ends after half a second."""
    events = work_folder(session.path) / "run.jsonl"
    ready, over = threading.Event(), threading.Event()

    def hold() -> None:
        with process.training_lock(session.path, events):
            events.touch()
            ready.set()
            over.wait(30)
            events.write_text(json.dumps({"event": "end", "outcome": "finished"}) + "\n", encoding="utf-8")

    trainer = threading.Thread(target=hold)
    trainer.start()
    assert ready.wait(10)
    ending = threading.Timer(0.5, over.set)
    try:
        yield ending.start()
    finally:
        over.set()
        trainer.join()


def progress(name: str = "mug") -> str:
    return sessions.show(name).progress


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("state", STATES)
def test_a_form_never_changes_or_drops_anything_in_silence(
    state: str, form: str, trained: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = FORMS[form]
    with in_state(state, trained, sessions_folder) as before:
        capsys.readouterr()
        differs = form in ("changed", "reset")
        if state == "new" and differs:
            with pytest.raises(ConfigError, match="change_session") as error:
                notebook.open_session("mug", **fields)
            assert ("base model mini -> sd15" if form == "reset" else "token sks -> ohwx") in str(error.value)
            assert Session.open("mug").record == before.record
            return
        session = notebook.open_session("mug", **fields)
        printed = capsys.readouterr().out
        assert session.record == before.record
        assert ("keeps its own" in printed) == differs
        if form == "changed":
            assert "keeps its own token: sks, not ohwx" in printed
            assert "keeps its own unet.steps: 3, not 9" in printed
        if form == "reset":
            assert "keeps its own base model: mini, not sd15" in printed
        # The Train cell, whose form is empty.
        if state == "running elsewhere":
            with pytest.raises(SessionBusy, match="ann on other"):
                notebook.train(session)
            assert progress() == "text_encoder 1/1, unet 1/3"
            return
        notebook.train(session)
        expected = {"extended": "text_encoder 1/1, unet 4/4", "running here": "text_encoder 1/1, unet 1/3"}
        assert progress() == expected.get(state, "text_encoder 1/1, unet 3/3")
        after = Session.open("mug").record
        assert (after.config, after.base_model, after.lineage) == (
            before.record.config,
            before.record.base_model,
            before.record.lineage,
        )


@pytest.mark.parametrize("state", STATES)
def test_settings_given_in_python_are_applied_or_reported(
    state: str, trained: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fastdb

    with in_state(state, trained, sessions_folder) as before:
        settings = {"unet": {"steps": 4, "learning_rate": before.config.unet.learning_rate}}
        if state == "running elsewhere":
            with pytest.raises(SessionBusy):
                fastdb.train("mug", settings=settings)
            assert Session.open("mug").record == before.record
            return
        assert fastdb.train("mug", settings=settings) == "finished"
        printed = capsys.readouterr().out
        if state == "new":
            assert "Changed unet.steps: 3 -> 4" in printed
            assert progress() == "text_encoder 1/1, unet 4/4"
        else:
            assert "keeps its own unet.steps: 3, not 4" in printed
            assert Session.open("mug").config == before.config


@pytest.mark.parametrize("state", STATES)
def test_settings_on_the_command_line_are_applied_or_refused(state: str, trained: Path, sessions_folder: Path) -> None:
    with in_state(state, trained, sessions_folder) as before:
        if state == "new":
            assert training.train("mug", settings={"unet.steps": 2}) == "finished"
            assert progress() == "text_encoder 1/1, unet 2/2"
            return
        with pytest.raises(FastDBError) as error:
            training.train("mug", settings={"unet.steps": 2})
        remedy = {"running here": "fastdb stop mug", "running elsewhere": "--take-over"}.get(state, "fastdb extend mug")
        assert remedy in str(error.value)
        assert Session.open("mug").record == before.record


def test_more_steps_extend_a_finished_training_once(
    trained: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_state("done", trained, sessions_folder) as session:
        notebook.train(session, "2")
        assert progress() == "text_encoder 1/1, unet 5/5"
        capsys.readouterr()
        notebook.train(session, "2")
        assert progress() == "text_encoder 1/1, unet 5/5"
        assert "The last extension added 2 steps already" in capsys.readouterr().out
        notebook.train(session, "1")
        assert progress() == "text_encoder 1/1, unet 6/6"


def test_more_steps_before_the_end_are_not_added_and_that_is_told(
    trained: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_state("begun", trained, sessions_folder) as session:
        notebook.train(session, "2")
        assert progress() == "text_encoder 1/1, unet 3/3"
        assert "no steps were added" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_more_steps_that_are_no_number_are_refused(text: str, trained: Path, sessions_folder: Path) -> None:
    with in_state("done", trained, sessions_folder) as session, pytest.raises(ConfigError, match="more_steps"):
        notebook.train(session, text)


def test_starting_over_happens_once_although_the_tick_stays(trained: Path, sessions_folder: Path) -> None:
    with in_state("done", trained, sessions_folder) as session:
        notebook.train(session, start_over=True)
        lineage = Session.open("mug").record.lineage
        assert lineage != session.record.lineage
        notebook.train(session, start_over=True)
        assert Session.open("mug").record.lineage == lineage
        assert len(list(session.checkpoints.glob("set-aside-*"))) == 1


def test_starting_over_is_not_repeated_after_a_failure(
    trained: Path, sessions_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says to run the cell again, and the tick is still on."""
    honest = training.train

    def failing(session: Session, **options: Any) -> str:
        assert options["restart"]
        session.with_new_lineage()
        raise TrainingError("the trainer was killed")

    with in_state("done", trained, sessions_folder) as session:
        monkeypatch.setattr(training, "train", failing)
        with pytest.raises(TrainingError):
            notebook.train(session, start_over=True)
        asked: list[bool] = []
        monkeypatch.setattr(training, "train", lambda *_, **options: asked.append(options["restart"]) or "finished")
        notebook.train(session, start_over=True)
        assert asked == [False]
        monkeypatch.setattr(training, "train", honest)


def test_a_trainer_that_ends_before_it_is_watched_is_not_started_again(
    trained: Path, sessions_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_state("begun", trained, sessions_folder) as session:
        found = iter([object(), None, None, None, None])
        monkeypatch.setattr(process, "find", lambda session: next(found, None))
        monkeypatch.setattr(process, "start", lambda *_: pytest.fail("a trainer was started"))
        notebook.train(session, watch_only=True)
        assert progress() == "text_encoder 1/1, unet 1/3"


def test_ticks_that_contradict_each_other_are_refused(trained: Path, sessions_folder: Path) -> None:
    with in_state("done", trained, sessions_folder) as session:
        for ticks in ({"stop": True, "start_over": True}, {"watch_only": True, "stop": True}):
            with pytest.raises(ConfigError, match="cannot be combined"):
                notebook.train(session, **ticks)
        with pytest.raises(ConfigError, match="start_over and more_steps"):
            notebook.train(session, "5", start_over=True)


@pytest.mark.parametrize("tick", ["stop", "watch_only"])
def test_stop_and_watch_only_start_nothing(
    tick: str, trained: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_state("begun", trained, sessions_folder) as session:
        notebook.train(session, **{tick: True})
        assert "mug is not being trained on this machine" in capsys.readouterr().out
        assert progress() == "text_encoder 1/1, unet 1/3"


@pytest.mark.parametrize("outcome", ["stopped", "interrupted", "left"])
def test_a_training_that_did_not_finish_cancels_the_cells_below(
    outcome: str, trained: Path, sessions_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: outcome)
    below = pytest.raises(TrainingError, match="the cells below were not run")
    with in_state("begun", trained, sessions_folder) as session, below:
        notebook.train(session)


def test_the_empty_name_is_the_trial(capsys: pytest.CaptureFixture[str]) -> None:
    session = notebook.open_session("", "sd15")
    assert (session.name, session.record.base_model.folder) == (notebook.TRIAL, "mini")
    assert "session_name is empty" in capsys.readouterr().out
    assert len(list(session.instance_images.glob("*.png"))) == 5
    assert notebook.open_session("", "sd15").record == session.record
    with pytest.raises(ConfigError, match="session_name is empty although unet_steps, token are filled in"):
        notebook.open_session("", "sd15", "sks", "", {"unet_steps": "5", "resolution": " "})


def test_a_trial_that_was_interrupted_before_its_photos_gets_them() -> None:
    sessions.new(notebook.TRIAL, "mini", token="sks", class_word="mug")
    assert len(list(notebook.open_session("", "sd15").instance_images.glob("*.png"))) == 5


def test_fields_are_the_settings_of_a_new_session() -> None:
    numbers = {"resolution": "128", "text_encoder_rate": "1e-4", "unet_steps": " 7 ", "keep_every": ""}
    session = notebook.open_session("cup", "mini", "sks", "cup", numbers)
    assert (session.config.resolution, session.config.unet.steps) == (128, 7)
    assert session.config.text_encoder.learning_rate == 1e-4
    assert session.config.checkpoints.keep_every == Config().checkpoints.keep_every
    with pytest.raises(ConfigError, match="seven"):
        notebook.open_session("dog", "mini", "sks", "dog", {"unet_steps": "seven"})
    assert set(notebook.FIELDS.values()) <= set(_names())


def _names() -> set[str]:
    from fastdb.config import flat

    return {name for name, _ in flat(Config().model_dump())}
