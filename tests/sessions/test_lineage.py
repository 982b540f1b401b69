"""Checkpoints of another session or lineage are skipped with a reason."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, complete, newest, save
from fastdb.checkpoints.progress import standing, standings
from fastdb.checkpoints.retention import prune, spare
from fastdb.commands import sharing
from fastdb.errors import ConfigError
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord, read_record, write_record

HERE, ELSEWHERE = "a" * 32, "b" * 32
FOREIGN = "it belongs to another session or to an earlier start of this one"


def put(folder: Path, step: int, stage: str = "unet", **state: Any) -> Checkpoint:
    data = f"{stage} {step}".encode()

    def write(hidden: Path) -> dict[str, str]:
        (hidden / f"{stage}.safetensors").write_bytes(data)
        return {f"{stage}.safetensors": hashlib.sha256(data).hexdigest()}

    return save(folder, stage, step, {"step": step, **state}, write)[0]


@pytest.fixture
def session() -> Session:
    """A session of a known lineage, its text encoder trained."""
    made = Session.create("dog", base_model=BaseModelRecord(folder="mini", fingerprint="0"))
    write_record(made.path, made.record.model_copy(update={"lineage": HERE}))
    put(made.checkpoints, 350, "text_encoder", format=2, lineage=HERE)
    return Session.open("dog")


def test_every_session_has_one_of_its_own(session: Session) -> None:
    other = Session.create("cat", base_model=BaseModelRecord(folder="mini", fingerprint="0"))
    assert len({session.record.lineage, other.record.lineage, other.with_new_lineage().record.lineage}) == 3
    assert Session.open("cat").record.lineage != other.record.lineage


def test_a_checkpoint_of_another_lineage_is_skipped_and_kept(session: Session) -> None:
    put(session.checkpoints, 100, format=2, lineage=HERE)
    put(session.checkpoints, 300, format=2, lineage=ELSEWHERE)
    put(session.checkpoints, 400, format=3, lineage=HERE)
    stands = standing(session)
    assert stands.done("unet") == 100
    assert list(stands.skipped) == [
        Note("checkpoint skipped", "unet-000400", "its state has format 3; this version reads 2"),
        Note("checkpoint skipped", "unet-000300", FOREIGN),
    ]
    found, notes = standings(session)
    assert [stands.done("unet") for stands in found] == [100]
    assert notes == list(stands.skipped)
    assert [checkpoint.step for checkpoint in complete(session.checkpoints, "unet", lineage=HERE)] == [100]
    assert [one.step for one in complete(session.checkpoints, "unet")] == [100, 300, 400]


@pytest.mark.parametrize("known", ["here", "there", "neither"])
def test_a_lineage_that_is_not_known_is_let_pass(known: str, session: Session) -> None:
    if known != "here":
        write_record(session.path, session.record.model_copy(update={"lineage": ""}))
    put(session.checkpoints, 100, **({"format": 2, "lineage": ELSEWHERE} if known == "there" else {}))
    stands = standing(Session.open("dog"))
    assert (stands.done("unet"), stands.skipped) == (100, ())


@pytest.mark.parametrize("state", [{"format": "2"}, {"format": True}, {"format": -1}, {"format": None}])
def test_a_checkpoint_of_an_unknown_format_is_skipped(state: dict[str, Any], session: Session) -> None:
    put(session.checkpoints, 100, **state)
    found, [note] = newest(session.checkpoints, "unet", HERE)
    assert found is None
    assert note.reason.startswith("its state has format ")


def test_strangers_make_no_room_and_are_not_removed(session: Session) -> None:
    """An own checkpoint goes under two newer ones of its own kind; a stranger is no step back to it."""
    for step in (100, 200):
        put(session.checkpoints, step, format=2, lineage=HERE)
    for step in (50, 300, 400):
        put(session.checkpoints, step, format=2, lineage=ELSEWHERE)
    assert spare(session.checkpoints, "unet", lineage=HERE) == []
    assert prune(session.checkpoints, "unet", lineage=HERE) == []
    assert [one.step for one in complete(session.checkpoints, "unet")] == [50, 100, 200, 300, 400]
    put(session.checkpoints, 500, format=2, lineage=HERE)
    assert prune(session.checkpoints, "unet", lineage=HERE) == []
    assert [one.step for one in complete(session.checkpoints, "unet")] == [50, 200, 300, 400, 500]


def test_a_lineage_is_copied_with_the_checkpoints(session: Session, tmp_path: Path) -> None:
    heavy = sharing.share(session, tmp_path / "heavy.zip", checkpoints=True)
    light = sharing.share(session, tmp_path / "light.zip")
    shutil.copytree(session.path, tmp_path / "mount")
    kept = [
        sharing.adopt(heavy, "one"),
        sharing.adopt(tmp_path / "mount", "two"),
        sharing.duplicate(session, "three", checkpoints=True),
    ]
    assert {one.record.lineage for one in kept} == {HERE}
    assert [standing(one).done("text_encoder") for one in kept] == [350, 350, 350]
    anew = {sharing.adopt(light, "four").record.lineage, sharing.duplicate(session, "five").record.lineage}
    assert len(anew - {HERE, ""}) == 2
    assert read_record(session.path).lineage == HERE


def test_a_lineage_that_is_none_is_refused(session: Session) -> None:
    path = session.path / "session.yaml"
    path.write_text(path.read_text().replace(HERE, "../../etc"))
    with pytest.raises(ConfigError, match=r"lineage is '../../etc'"):
        Session.open("dog")


CUT = """
from fastdb.checkpoints.checkpoint import complete, save
from fastdb.storage.set_aside import move_aside
def prepare(folder):
    for step in (1, 2, 3, 4):
        save(folder, "unet", step, {"step": step}, lambda hidden: {})
def work(folder):
    move_aside(folder, [checkpoint.path for checkpoint in complete(folder, "unet") if checkpoint.step > 2])
"""


def test_cut_off_at_any_point_no_newer_one_is_left_above_a_gap(cut_everywhere: Callable[[str], list[Path]]) -> None:
    folders = cut_everywhere(CUT)
    left = [[one.step for one in complete(folder)] for folder in folders]
    assert {tuple(steps) for steps in left} == {(1, 2, 3, 4), (1, 2, 3), (1, 2)}
    assert left[-1] == [1, 2]
    for folder in folders:
        assert len(list(folder.rglob("state.json"))) == 4
