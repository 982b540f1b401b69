"""A session is its lineage: after `--restart`, under a new name, deleted and made anew, and as a copy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from fastdb import interactive
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import progress_of, standing
from fastdb.commands import folders, sessions, training
from fastdb.errors import SessionBusy
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.training import process

SHORT = {"text_encoder.steps": 1, "unet.steps": 2, "prior.class_images": 0}


def test_a_checkpoint_of_an_earlier_lineage_is_skipped(
    make_session: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session = make_session("again", **SHORT)
    assert interactive.train(session) == "finished"
    old = session.record.lineage
    assert {(one.state["format"], one.state["lineage"]) for one in complete(session.checkpoints)} == {(2, old)}
    assert interactive.train(session, restart=True, settings={"unet.learning_rate": 1e-3}) == "finished"
    session = Session.open(session.path)
    new = session.record.lineage
    assert new != old
    assert {one.state["lineage"] for one in complete(session.checkpoints)} == {new}
    # As an upload that comes late would put it there.
    late = session.checkpoints / "set-aside-1" / "unet-000002"
    shutil.copytree(late, session.checkpoints / "unet-000009")
    stands = standing(session)
    assert (stands.done("unet"), stands.done("text_encoder")) == (2, 1)
    reason = "it belongs to another session or to an earlier start of this one"
    assert stands.skipped == (Note("checkpoint skipped", "unet-000009", reason),)
    capsys.readouterr()
    assert interactive.train(session, settings={"checkpoints.every_steps": 1}) == "finished", (
        "its recipe is not looked at"
    )
    assert reason in capsys.readouterr().out
    assert (session.checkpoints / "unet-000009").is_dir()


LONG = {"text_encoder__steps": 0, "unet__steps": 4000, "prior__class_images": 0, "checkpoints__every_steps": 20}


def trained_now(session: Session) -> process.Running:
    """Start a trainer, and wait until it has saved a checkpoint."""
    running = process.start(session)
    deadline = time.monotonic() + 120
    while not complete(session.local_checkpoints):
        assert time.monotonic() < deadline
        assert running.alive(), list(running.follow())[-1]
        time.sleep(0.05)
    return running


def test_a_session_renamed_while_it_trains_is_the_same_one(make_session: Callable[..., Session]) -> None:
    session = make_session("cup", **LONG)
    running = trained_now(session)
    session.path.rename(session.path.with_name("my mug"))
    mug = Session.open(session.path.with_name("my mug"))
    # A new session takes the old name meanwhile.
    again = sessions.new("cup", "mini", root=session.path.parent)
    with pytest.raises(SessionBusy, match="being trained"):
        folders.delete(mug, confirm=lambda removal: True)
    assert process.find(mug).pid == running.pid  # type: ignore[union-attr]
    assert (process.find(again), progress_of(again)["unet"]) == (None, 0)
    assert training.stop(mug)
    end = list(running.follow())[-1]
    assert end["outcome"] == "failed"
    assert "cup was renamed to 'my mug' while it was in use" in end["message"]
    assert "fastdb publish 'my mug'" in end["message"]
    assert sorted(path.name for path in again.checkpoints.iterdir()) == ["README.txt"]
    assert Session.open(again.path).record == again.record
    training.publish(mug)
    assert complete(mug.checkpoints)[-1].step == progress_of(mug)["unet"] >= 2
    assert standing(mug).skipped == ()


def test_a_deleted_session_does_not_fill_the_next_of_its_name(make_session: Callable[..., Session]) -> None:
    session = make_session("cup", **LONG)
    running = trained_now(session)
    shutil.rmtree(session.path)
    again = sessions.new("cup", "mini", root=session.path.parent)
    before = {path: path.read_bytes() for path in again.path.rglob("*") if path.is_file()}
    running.stop()
    end = list(running.follow())[-1]
    assert (end["outcome"], "Traceback" in str(end)) == ("failed", False)
    assert f"checkpoints of the former one are kept in {session.local_checkpoints}" in end["message"]
    assert {path: path.read_bytes() for path in again.path.rglob("*") if path.is_file()} == before
    assert complete(session.local_checkpoints)
    assert sessions.show(again).progress == "text_encoder 0/120, unet 0/700"


def test_a_copy_trains_on_by_itself(straight: Session, copy: Callable[[Session], Session]) -> None:
    copied = copy(straight)
    training.extend(copied, 1)
    before = {path: path.read_bytes() for path in straight.checkpoints.rglob("*") if path.is_file()}
    assert training.train(copied) == "finished"
    own = Session.open(copied.path)
    assert own.record.inherited == (straight.record.lineage,)
    assert (progress_of(own)["unet"], progress_of(straight)["unet"]) == (11, 10)
    assert {one.state["lineage"] for one in complete(own.local_checkpoints)} == {own.record.lineage}
    assert {path: path.read_bytes() for path in straight.checkpoints.rglob("*") if path.is_file()} == before
