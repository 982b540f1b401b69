"""Checkpoints from before `--restart` are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from fastdb import interactive
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import standing
from fastdb.reporting import Note
from fastdb.sessions.session import Session

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
