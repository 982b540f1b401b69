"""Work on this machine of sessions that are gone is counted and can be deleted, and no other work is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from fastdb.checkpoints.local_work import TRAINING_LOCK, gone_work
from fastdb.commands import space
from fastdb.console import show_usage
from fastdb.runtime.paths import sessions_root
from fastdb.sessions.events import EventLog
from fastdb.sessions.identity import claim_work
from fastdb.sessions.session import Session
from tests.sessions.test_identity import by_path, make, put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dog() -> Session:
    """A session with a checkpoint of step 3 that was published, and one of step 6 that was not."""
    session, _ = claim_work(make())
    put(session, 6)
    published = put(session, 3, session.checkpoints)
    log = EventLog(session.work / "run-1.jsonl")
    log.emit("published", stage="unet", step=3, path=str(published.path), bytes=9, seconds=1)
    log.close()
    return session


def titles() -> list[str]:
    return [work.title for work in gone_work(sessions_root())]


def test_the_work_of_a_deleted_session_is_named_and_deleted(dog: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert titles() == []
    shutil.rmtree(dog.path)
    make()  # Another session of the name is not the session.
    assert titles() == ["dog: unet step 6, published up to step 3"]
    show_usage(space.space(), details=False)
    printed = capsys.readouterr().out
    assert "dog: unet step 6, published up to step 3: " in printed
    assert "Delete them with: fastdb free --unfinished" in printed
    asked: list[space.Removal] = []

    def refuse(removal: space.Removal) -> bool:
        asked.append(removal)
        return False

    assert space.free_unfinished(confirm=refuse) == 0
    assert [(kind, name) for kind, name, _ in asked[0].files] == [
        ("work of sessions that are gone", "dog: unet step 6, published up to step 3")
    ]
    assert space.free_unfinished(confirm=lambda removal: True) == asked[0].bytes > 0
    assert (dog.work.exists(), titles()) == (False, [])


@pytest.mark.parametrize(("steps", "said"), [([], "never published"), ([3, 6], "published")])
def test_it_is_told_whether_it_was_ever_published(dog: Session, steps: list[int], said: str) -> None:
    log = EventLog(dog.work / "run-1.jsonl")
    (dog.work / "run-1.jsonl").write_text("")
    for step in steps:
        log.emit("published", stage="unet", step=step, path=str(dog.checkpoints / f"unet-{step:06d}"))
    log.close()
    shutil.rmtree(dog.path)
    assert titles() == [f"dog: unet step 6, {said}"]


def test_a_session_that_may_still_be_there_is_not_gone(dog: Session, tmp_path: Path) -> None:
    dog.path.rename(dog.path.with_name("cat"))
    assert titles() == [], "renamed"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(dog.path.parent, elsewhere)
    shutil.rmtree(dog.path.with_name("cat"))
    assert gone_work(elsewhere) == [], "in the folder of sessions that is asked about"
    assert len(titles()) == len(gone_work()) == 1
    with FileLock(dog.work / TRAINING_LOCK):
        assert titles() == [], "trained"
    home = json.loads((dog.work / "session.json").read_text())
    (dog.work / "session.json").write_text(json.dumps({**home, "mount": str(dog.path.parent)}))
    assert titles() == [], "its disk is not mounted"


def test_an_unreadable_session_is_not_gone(dog: Session) -> None:
    (dog.path / "session.yaml").write_text("{")
    assert titles() == []
    assert space.free_unfinished(confirm=lambda removal: True) == 0


@pytest.fixture
def older(dog: Session) -> Path:
    """The work folder as an earlier version left it."""
    (dog.work / "session.json").unlink()
    return dog.work.rename(by_path(dog))


def test_work_of_earlier_versions_is_told_by_its_logs(dog: Session, older: Path) -> None:
    assert titles() == []
    shutil.rmtree(dog.path)
    make()
    assert titles() == ["dog: unet step 6, published up to step 3"]
    assert space.free_unfinished(confirm=lambda removal: True) > 0
    assert not older.exists()


def test_without_any_log_it_is_left_alone(dog: Session, older: Path) -> None:
    (older / "run-1.jsonl").unlink()
    shutil.rmtree(dog.path)
    assert titles() == []


def test_checkpoints_set_aside_here_are_counted_and_deleted(dog: Session, capsys: pytest.CaptureFixture[str]) -> None:
    aside = dog.local_checkpoints / "set-aside-1"
    aside.mkdir()
    (dog.local_checkpoints / "unet-000006").rename(aside / "unet-000006")
    show_usage(space.space(["dog"]), details=True)
    assert "set-aside on this machine: set-aside-1" in capsys.readouterr().out
    asked: list[space.Removal] = []

    def agree(removal: space.Removal) -> bool:
        asked.append(removal)
        return True

    assert space.free("dog", ["set-aside"], confirm=agree) > 0
    assert [name for _, name, _ in asked[0].files] == ["checkpoints/set-aside-1 on this machine"]
    assert not aside.exists()
    assert dog.work.is_dir()
