"""Choice of local checkpoints to publish or delete, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, complete, save
from fastdb.checkpoints.publish import MADE_OF, pending, prune_local
from fastdb.config import Config
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.manifest import hashes_in

STEPS = {"text_encoder": 8, "unet": 16}


@pytest.fixture
def session() -> Session:
    return Session.create("cup", base_model=BaseModelRecord(folder="mini", fingerprint="0"))


def put(session: Session, folder: Path, stage: str, step: int, content: bytes = b"", **state: Any) -> Checkpoint:
    def write(hidden: Path) -> dict[str, str]:
        data = content or f"{stage} {step}".encode()
        (hidden / f"{stage}.safetensors").write_bytes(data)
        return {f"{stage}.safetensors": hashlib.sha256(data).hexdigest()}

    folder.parent.mkdir(parents=True, exist_ok=True)
    said = {"format": 2, "lineage": session.record.lineage, "stage": stage, "step": step, "steps": STEPS[stage]}
    return save(folder, stage, step, {**said, **state}, write)[0]


def here(session: Session, *steps: tuple[str, int]) -> None:
    for stage, step in steps:
        put(session, session.local_checkpoints, stage, step)


def out(session: Session, *steps: tuple[str, int]) -> None:
    """Publish what lies on this machine."""
    local = {(checkpoint.stage, checkpoint.step): checkpoint for checkpoint in complete(session.local_checkpoints)}
    for stage, step in steps:
        name = f"{stage}.safetensors"
        put(session, session.checkpoints, stage, step, **{MADE_OF: {name: hashes_in(local[stage, step].path)[name]}})


def names(session: Session) -> list[str]:
    return [one.path.name for one in pending(session)]


def test_of_a_stage_that_goes_on_only_the_newest(session: Session) -> None:
    assert names(session) == []
    here(session, ("text_encoder", 3), ("text_encoder", 6))
    assert names(session) == ["text_encoder-000006"]


def test_the_one_found_best_is_published_however_many_come_after_it(session: Session) -> None:
    here(session, ("unet", 5), ("unet", 10), ("unet", 12))
    assert names(session) == ["unet-000012"]
    (session.path / "evaluation").mkdir()
    (session.path / "evaluation" / "evaluation.json").write_text('{"picked": {"step": 5}}')
    assert names(session) == ["unet-000005", "unet-000012"]


def test_the_last_of_each_stage_comes_first_and_in_order(session: Session) -> None:
    here(session, ("unet", 5), ("text_encoder", 3), ("text_encoder", 8), ("unet", 10))
    assert names(session) == ["text_encoder-000008", "unet-000010"]
    out(session, ("text_encoder", 8))
    assert names(session) == ["unet-000010"]
    out(session, ("unet", 10))
    assert names(session) == []
    here(session, ("unet", 16))
    assert names(session) == ["unet-000016"]


def test_what_is_kept_for_good_is_published_though_it_is_not_the_newest(session: Session) -> None:
    session = session.with_config(Config().changed({"checkpoints.keep_every": 4}))
    here(session, ("unet", 3), ("unet", 4), ("unet", 6), ("unet", 8), ("unet", 9))
    assert names(session) == ["unet-000004", "unet-000008", "unet-000009"]
    out(session, ("unet", 9))
    assert names(session) == ["unet-000004", "unet-000008"]


def test_nothing_goes_back_behind_what_is_published(session: Session) -> None:
    here(session, ("unet", 5), ("unet", 10))
    out(session, ("unet", 10))
    (session.local_checkpoints / "unet-000010").rename(session.local_checkpoints / "gone")
    assert names(session) == []


def test_another_state_of_the_same_step_is_not_the_one_that_is_published(session: Session) -> None:
    here(session, ("unet", 10))
    put(session, session.checkpoints, "unet", 10, **{MADE_OF: {"unet.safetensors": "0" * 64}})
    assert names(session) == ["unet-000010"]


def test_a_published_one_that_is_damaged_or_says_nothing_is_published_again(session: Session) -> None:
    here(session, ("unet", 10))
    put(session, session.checkpoints, "unet", 10)
    (published,) = complete(session.checkpoints)
    assert names(session) == ["unet-000010"]
    (published.path / "state.json").write_text("{")
    assert names(session) == ["unet-000010"]


def test_another_beginning_has_no_part_in_it(session: Session) -> None:
    here(session, ("unet", 10))
    out(session, ("unet", 10))
    again = session.with_new_lineage()
    assert names(again) == []
    here(again, ("unet", 2))
    assert names(again) == ["unet-000002"], "the published one of the beginning before is not ahead of it"
    assert prune_local(again) == []
    assert [one.step for one in complete(again.local_checkpoints)] == [2]


def test_what_need_not_be_published_leaves_this_machine_under_two_newer_ones(session: Session) -> None:
    here(session, ("text_encoder", 3), ("text_encoder", 6), ("text_encoder", 8), ("unet", 2), ("unet", 4), ("unet", 6))
    prune_local(session)
    left = [one.path.name for one in complete(session.local_checkpoints)]
    assert left == ["text_encoder-000006", "text_encoder-000008", "unet-000004", "unet-000006"]
    here(session, ("unet", 8))
    prune_local(session, keep=1)
    assert [one.path.name for one in complete(session.local_checkpoints)] == ["text_encoder-000008", "unet-000008"]


def test_what_is_pending_stays_however_old_it_is(session: Session) -> None:
    session = session.with_config(Config().changed({"checkpoints.keep_every": 2}))
    here(session, ("unet", 2), ("unet", 3), ("unet", 5), ("unet", 7))
    prune_local(session, keep=1)
    assert [one.step for one in complete(session.local_checkpoints)] == [2, 7]
