"""Retention of checkpoints by settings and by the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastdb.checkpoints.retention import KEEP, Retention, retention
from fastdb.config import Config
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord


@pytest.fixture
def session() -> Session:
    return Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))


def evaluated(session: Session, told: Any) -> Session:
    folder = session.path / "evaluation"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(told if isinstance(told, str) else json.dumps(told))
    return session


def test_the_settings_say_what_stays(session: Session) -> None:
    assert retention(session) == Retention(KEEP, 0, None)
    changed = session.with_config(Config().changed({"checkpoints.keep_last": 5, "checkpoints.keep_every": 250}))
    assert retention(evaluated(changed, {"picked": {"step": 750}})) == Retention(5, 250, 750)


def test_the_best_is_the_step_that_the_evaluation_names(session: Session) -> None:
    assert retention(session).best is None
    assert retention(evaluated(session, {"picked": {"checkpoint": "unet step 500", "step": 500}})).best == 500


@pytest.mark.parametrize(
    "told", ["", "{", "[]", "[" * 99_999, {"picked": None}, {"picked": {"step": None}}, {"picked": {"step": "500"}},
             {"picked": {"step": True}}, {"picked": {"step": 1.5}}],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_read_keeps_nothing(session: Session, told: Any) -> None:
    assert retention(evaluated(session, told)).best is None


def test_what_stays() -> None:
    keep = Retention(every=250, best=300)
    assert [step for step in (250, 300, 301, 500) if keep.keeps("unet", step)] == [250, 300, 500]
    assert not keep.keeps("text_encoder", 300)
    assert not Retention().keeps("unet", 0)


def test_a_folder_that_cannot_be_read_is_none(session: Session) -> None:
    path: Path = session.path / "evaluation" / "evaluation.json"
    path.mkdir(parents=True)
    assert retention(session).best is None
