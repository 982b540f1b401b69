"""A token is tried before it is trained: what the untrained base draws for it."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.commands import session_changes, sessions, sharing, token_trial, training
from fastdb.console import sentence
from fastdb.errors import ConfigError
from fastdb.images.photos import save_png
from fastdb.models.registry import MINI
from fastdb.reporting import Note, Report
from fastdb.sessions.session import Session
from fastdb.sessions.token_trial import RECORD, SHEET, TokenTrial, Tried, recorded
from fastdb.training import process, token_try
from fastdb.training.trainer import Trainer
from fastdb.world.subjects import SUBJECTS
from tests.training.conftest import outcome, result

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE_RARE_WORDS = "bdddfb6"
"""A commit with the mini to which `sks dog` is a fish."""
SETTINGS: dict[str, Any] = {
    "text_encoder.steps": 0,
    "unet.steps": 1,
    "prior.class_images": 1,
    "prior.prompts": ["a photo of a mug"],
    "prior.steps": 2,
    "checkpoints.every_steps": 1,
}


class Notes(Report):
    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.events: list[dict[str, Any]] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        notes = [event["kind"] for event in self.events if event["event"] == "note"]
        return [*(note.kind for note in self.notes), *notes]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    save_png(SUBJECTS["mug"].photos()[0], folder / "1.png")
    return [folder]


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures of each prompt; trainers that are forked draw all."""
    monkeypatch.setattr(token_try, "ON_MINI", 2)


def mug(photos: list[Path], name: str = "mug", **changed: Any) -> Session:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changed.items()}}
    return sessions.new(name, MINI, photos, token="sks", class_word="mug", settings=settings)


@pytest.fixture(scope="session")
def earlier_mini(common: Path) -> Path:
    """The folder of the mini of an earlier commit."""
    folder = common / "earlier-mini"
    if not folder.exists():
        name = f"{BEFORE_RARE_WORDS}:fastdb/models/mini"
        git = ["git", "-C", str(REPOSITORY)]
        if shutil.which("git") is None or subprocess.run([*git, "cat-file", "-e", name], check=False).returncode:
            pytest.skip(f"needs a clone with the commit {BEFORE_RARE_WORDS}")
        archive = subprocess.run([*git, "archive", name], capture_output=True, check=True).stdout
        made = folder.with_name(f"{folder.name}-{time.monotonic_ns()}")
        made.mkdir()
        subprocess.run(["tar", "-x", "-C", str(made)], input=archive, check=True)
        made.rename(folder)
    return folder


def test_a_token_that_hides_the_class_is_warned_of_with_tokens_that_do_better(
    earlier_mini: Path, photos: list[Path], fewer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_try, "ELSEWHERE", 4)
    settings = {"resolution": 64, "prior.steps": 8, "prior.guidance": 3.0}
    session = sessions.new("dog", earlier_mini, photos, token="sks", class_word="dog", settings=settings)
    report = Notes()
    trial = token_trial.try_token("dog", measure="drawn", report=report)
    assert (trial.tried[0].shown, trial.class_shown) == (0, 4)
    warning, better, _ = [sentence(note) for note in report.notes if note.kind != "trying token"]
    assert warning.startswith(
        "The untrained base model shows the class for 'a photo of sks dog' in 0 of 4 pictures, and in 4 without"
    )
    assert better.endswith("To change it: fastdb change dog --token ohwx")
    assert recorded(session) == trial
    again = token_trial.try_token("dog", [each.token for each in trial.better], measure="drawn", first_seed=7)
    assert all((each.shown or 0) >= 3 for each in again.tried), "on fresh seeds too"
    # The remedy.
    assert session_changes.change("dog", token="ohwx").config.captions.instance_prompt == "a photo of ohwx dog"
    after = Notes()
    assert token_trial.try_token("dog", measure="drawn", report=after).tried[0].shown == 4
    assert after.kinds() == ["trying token", "token pictures"]


def test_an_interrupted_trial_continues_before_training_and_leaves_the_result_alone(photos: list[Path]) -> None:
    session = mug(photos)
    running = process.start(session)
    while not (drawn := list(session.samples.glob("class-000000-*.png"))) and running.alive():
        time.sleep(0.02)
    running.stop()
    assert outcome(running) == "stopped"
    before = {path: path.stat().st_mtime_ns for path in session.samples.glob("*-000000-*.png")}
    assert drawn
    assert not (session.samples / RECORD).exists()
    report = Notes()
    assert training.train("mug", report=report) == "finished"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stems = {path.stem for path in session.samples.glob("*.png")}
    assert {"instance-000000-16", "class-000000-16", "untrained"} <= stems
    (tried,) = [event for event in report.events if event["event"] == "token"]
    assert tried["prompts"] == ["a photo of sks mug", "a photo of a mug"]
    assert tried["sheet"] == str(session.samples / SHEET)
    samples = [event for event in report.events if event["event"] == "sample"]
    assert [(event["stage"], event["step"]) for event in samples[:2]] == [("instance", 0), ("class", 0)]
    kinds = [event["event"] for event in report.events]
    assert kinds.index("plan") < kinds.index("token") < kinds.index("stage")
    tasks = [event["task"] for event in report.events if event["event"] == "progress"]
    assert tasks.index("token pictures") < tasks.index("class images")
    assert sessions.show("mug").token_trial == recorded(session)
    other = mug(photos, "untried", token__try="off")
    assert training.train(other) == "finished"
    assert not list(other.samples.glob("*.png"))
    assert result(Session.open("untried")) == result(Session.open("mug"))


@pytest.mark.full
def test_a_failed_trial_ends_nothing_and_a_begun_session_has_none(photos: list[Path]) -> None:
    session, report, again = mug(photos), Notes(), Notes()
    (session.samples / RECORD).mkdir(parents=True)  # It cannot be written.
    assert training.train("mug", report=report) == "finished"
    assert "token not tried" in report.kinds()
    training.extend("mug", 1)
    assert training.train("mug", report=again) == "finished"
    assert not [event for event in again.events if event["event"] in ("token", "sample")]


def test_what_fails_in_a_trial_is_a_note(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no picture\nmore")

    monkeypatch.setattr(token_try, "try_before_training", fail)
    events: list[tuple[str, dict[str, Any]]] = []

    def emit(event: str, /, **fields: Any) -> None:
        events.append((event, fields))

    session = mug(photos)
    trainer = Trainer(session, emit, threading.Event())
    prepared = SimpleNamespace(session=session, base=None, device=None)
    trainer._try_token(prepared, lambda: pytest.fail("nothing is drawn"))  # type: ignore[arg-type]
    assert events == [("note", {"kind": "token not tried", "subject": "", "reason": "RuntimeError: no picture"})]


def test_nothing_reads_a_class_that_the_judge_does_not_know(photos: list[Path], fewer: None) -> None:
    sessions.new("cup", MINI, photos, token="sks", class_word="cup", settings=SETTINGS)
    report = Notes()
    trial = token_trial.try_token("cup", report=report)
    assert (trial.class_shown, trial.tried[0].shown) == (None, None)
    assert report.kinds() == ["trying token", "class not readable", "token pictures"]
    (path,) = (Session.open("cup").samples / SHEET,)
    assert sentence(report.notes[1]).endswith(f"recognises 'cup' in pictures. Compare them yourself: {path}")


def test_a_token_must_be_named_and_in_the_prompt(photos: list[Path]) -> None:
    sessions.new("named", MINI, photos)
    with pytest.raises(ConfigError, match=r"there is no token to try\. Name one: fastdb try-token named TOKEN"):
        token_trial.try_token("named")
    with pytest.raises(ConfigError, match="there is no token to try"):
        token_trial.try_token("named", [" "])


@pytest.mark.parametrize(
    ("shown", "of_class", "doubtful"),
    [(0, 16, True), (7, 15, True), (8, 16, False), (7, 14, False), (0, 0, False), (None, None, False)],
)
def test_a_token_is_doubtful_below_half_and_below_half_of_the_class(
    shown: int | None, of_class: int | None, doubtful: bool
) -> None:
    tried = Tried("sks", "a photo of sks dog", 1, False, shown)
    trial = TokenTrial("sks", "dog", "a photo of a dog", 16, {}, of_class, (tried,))
    assert trial.doubtful(tried) is doubtful


def test_a_begun_session_is_told_to_copy_its_photos(photos: list[Path]) -> None:
    session = mug(photos)
    tried = Tried("sks", "a photo of sks mug", 1, False, 0)
    better = Tried("xyz", "a photo of xyz mug", 1, False, 16)
    trial = TokenTrial("sks", "mug", "a photo of a mug", 16, {}, 16, (tried,), (better,))
    note = trial.notes(session, begins=True)[1]
    assert sentence(note).endswith("fastdb duplicate mug NEW, then fastdb change NEW --token xyz")
    sharing.duplicate("mug", "NEW")
    assert session_changes.change("NEW", token="xyz").config.captions.instance_prompt == "a photo of xyz mug"


class Words:
    """A tokenizer of CLIP's size: words it has are pieces, others are spelled."""

    def __init__(self, ranks: dict[str, int]) -> None:
        self.ranks = ranks

    def __len__(self) -> int:
        return 49_408

    def tokenize(self, word: str) -> list[str]:
        return [word] if word in self.ranks else list(word)

    def convert_tokens_to_ids(self, piece: str) -> int:
        return self.ranks[piece]


def test_pieces_and_common_words(mini: Path) -> None:
    from fastdb.models.loading import load_tokenizer
    from fastdb.models.rare_words import is_common, pieces_of, rare_words

    clip = Words({"sks": 48_136, "ohwx": 47_993, "zebra": 22_548, "gun": 3_496, "nmwx": 47_967})
    assert [pieces_of(clip, word) for word in ("sks", "zebra", "xjy")] == [1, 1, 3]
    assert [is_common(clip, word) for word in ("sks", "ohwx", "zebra", "gun", "xjy")] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert rare_words(clip, ["ohwx"]) == ["nmwx"]
    small = load_tokenizer(mini)
    assert [is_common(small, word) for word in ("dog", "red", "sks")] == [True, True, False]
    pieces = Tried("xjyq", "a photo of xjyq dog", 4, False, None)
    common = Tried("gun", "a photo of gun dog", 1, True, None)
    trial = TokenTrial("xjyq", "dog", "a photo of a dog", 8, {}, 8, (pieces, common))
    kinds: Callable[..., list[str]] = lambda: [note.kind for note in trial.notes(_session(), begins=False)]  # noqa: E731
    assert kinds() == ["token in pieces", "token is common"]


def _session() -> Session:
    return sessions.new("any", MINI)
