"""Sessions that began with a mini of an earlier version, which only that version can train, evaluate and export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.commands import results, session_changes, sessions, sharing, space, training
from fastdb.errors import TrainingError
from fastdb.models.base_identity import EARLIER_MINI
from fastdb.models.diffusers_folder import fingerprint
from fastdb.sessions.session import Session
from tests.test_cli import fastdb

SAMPLE = Path(__file__).resolve().parents[1] / "formats" / "session-1"
"""A session of fastdb 0.1.0 on its mini."""

SENTENCE = "this session began with the mini of fastdb 0.1.0, which this version does not contain"

VERBS: dict[str, Callable[[Session], object]] = {
    "train": training.train,
    "extend": lambda session: training.extend(session, 4),
    "generate": lambda session: results.generate(session, "a mug", steps=1),
    "evaluate": results.evaluate,
    "export": results.export,
}


@pytest.fixture
def earlier(sessions_folder: Path) -> Session:
    """A copy of the sample."""
    return Session.open(shutil.copytree(SAMPLE, sessions_folder / "cup"))


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_need_its_weights_name_the_version_that_shipped_it(earlier: Session, verb: str) -> None:
    before = (earlier.path / "session.yaml").read_bytes()
    with pytest.raises(TrainingError) as refused:
        VERBS[verb](earlier)
    assert str(refused.value) == (
        f"{SENTENCE}. Install fastdb 0.1.0 to continue it, or create a session with the current mini: "
        "fastdb new NAME --base mini"
    )
    assert (earlier.path / "session.yaml").read_bytes() == before


def test_the_command_line_prints_one_line_and_exits_with_2(earlier: Session) -> None:
    done = fastdb("train", str(earlier.path))
    assert SENTENCE in done.error


def test_all_other_verbs_work(earlier: Session, tmp_path: Path) -> None:
    assert sessions.show(earlier).base_fault == "the session began with that of fastdb 0.1.0"
    assert [row.session.name for row in sessions.list_sessions().rows] == ["cup"]
    (note,) = [note for note in sessions.check(earlier) if note.kind == "resume refused"]
    assert SENTENCE in note.reason
    assert space.space([earlier]).sessions
    archive = sharing.share(earlier, tmp_path / "cup.zip", checkpoints=True)
    assert sharing.adopt(archive, "received").record.lineage == earlier.record.lineage
    copy = sharing.duplicate(earlier, "copy")
    changed = session_changes.change(copy, base="mini")
    assert changed.record.base_model != earlier.record.base_model


def test_the_remedy_works(earlier: Session) -> None:
    session = sessions.new("other", "mini", [earlier.instance_images], token="sks", class_word="mug")
    assert training.extend(session, 4).config.unet.all_steps > session.config.unet.all_steps


def test_the_current_mini_is_no_earlier_one(mini: Path) -> None:
    """Before mini changes, add the fingerprint of the last release to the table."""
    assert fingerprint(mini) not in EARLIER_MINI
    assert fingerprint(mini) == "00c21e233c8101d3a82f408ea7947b8779fc74f7b0c3a69dd8aadc8679370889"
