"""Training with foreign files and copies in the session's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb import interactive
from fastdb.checkpoints.progress import standing
from fastdb.sessions.session import Session
from fastdb.training import process
from tests.leftovers import CASES, expected
from tests.training.conftest import outcome, result
from tests.training.test_trainer import findings

USUAL = ["wrong hash"]


def halfway(session: Session) -> Session:
    """The session as it was before the last of its UNet checkpoints."""
    last = sorted(session.checkpoints.glob("unet-*"))[-1]
    shutil.rmtree(last)
    return session


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        *USUAL,
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name, case in CASES.items()
            if case.older and name not in USUAL
        ),
    ],
)
def test_training_with_leftovers_ends_in_the_same_bytes(
    name: str, straight: Session, copy: Callable[[Session], Session]
) -> None:
    session = copy(straight)
    older, last = sorted(path.name for path in session.checkpoints.glob("unet-*"))[-2:]
    CASES[name].make(session.checkpoints, last)
    assert standing(session).checkpoints["unet"].path.name == older
    left = [path for path in session.checkpoints.iterdir() if path.name.startswith(last)]
    kept = {data for path in left for data in contents(path)}
    running = process.start(session)
    events = list(running.follow())
    assert any(f": {expected(CASES[name], last, '.packed')}" in line for line in findings(events))
    assert events[-1]["outcome"] == "finished"
    assert result(session) == result(straight)
    assert kept <= contents(session.path)


def test_a_checkpoint_of_another_session_is_skipped(
    straight: Session, copy: Callable[[Session], Session], make_session: Callable[..., Session]
) -> None:
    other = make_session("other", seed=12, unet__steps=4, text_encoder__steps=0, prior__class_images=0)
    assert outcome(process.start(other)) == "finished"
    session = copy(straight)
    for path in session.checkpoints.glob("unet-*"):
        shutil.rmtree(path)
    shutil.copytree(other.checkpoints / "unet-000004", session.checkpoints / "unet-000004")
    theirs = contents(session.checkpoints / "unet-000004")
    events = list(process.start(session).follow())
    assert any("unet-000004: it belongs to another session or to an" in line for line in findings(events))
    assert events[-1]["outcome"] == "finished"
    assert result(session) == result(straight)
    assert theirs <= contents(session.path)


def test_copies_of_photos_that_drive_makes_are_not_trained_on(
    straight: Session, copy: Callable[[Session], Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session = halfway(copy(straight))
    for folder in (session.instance_images, session.class_images):
        path = sorted(folder.glob("*.png"))[0]
        shutil.copy(path, path.with_name(f"{path.stem} (1).png"))
    assert interactive.train(session) == "finished"
    said = capsys.readouterr().out
    assert said.count(": copy of another image") == 2
    assert result(session) == result(straight)
