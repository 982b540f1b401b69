"""A session is its lineage: its work is found under any name, and copies become sessions of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, complete, save
from fastdb.checkpoints.progress import progress_of
from fastdb.checkpoints.publish import pending
from fastdb.errors import SessionBusy, SessionNotFound, StorageError
from fastdb.reporting import Note
from fastdb.runtime import machine
from fastdb.runtime.paths import Home, home_of, lineage_of, lineages_of, work_folder
from fastdb.sessions import lease_file
from fastdb.sessions.identity import claim_work, original_of, restarted
from fastdb.sessions.lease import take
from fastdb.sessions.lease_file import FILE as LEASE
from fastdb.sessions.lease_file import Lease
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord, write_record

SAMPLES = Path(__file__).resolve().parents[1] / "formats"


def make(name: str = "dog") -> Session:
    return Session.create(name, base_model=BaseModelRecord(folder="mini", fingerprint="0"))


def put(session: Session, step: int, folder: Path | None = None) -> Checkpoint:
    """A checkpoint of a session, on this machine by default."""
    folder = folder or session.local_checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    data = f"unet {step}".encode()

    def write(hidden: Path) -> dict[str, str]:
        (hidden / "unet.safetensors").write_bytes(data)
        return {"unet.safetensors": hashlib.sha256(data).hexdigest()}

    state: dict[str, Any] = {"format": 2, "lineage": session.record.lineage, "stage": "unet", "step": step, "steps": 9}
    return save(folder, "unet", step, state, write)[0]


@pytest.fixture
def dog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session with a published and a newer local checkpoint."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    session, _ = claim_work(make())
    put(session, 3, session.checkpoints)
    put(session, 6)
    return session


def steps(name: str | Path) -> int:
    return progress_of(Session.open(name))["unet"]


def test_the_quick_reader_agrees_with_the_file(dog: Session) -> None:
    assert lineages_of(dog.path) == [dog.record.lineage]
    for number in range(20):
        # Digits alone, or with an e between, are quoted in YAML.
        lineage = f"{number}" * 32 if number < 10 else f"{number:02d}" * 7 + "e" + "1" * 17
        copied = write_record(
            dog.path, dog.record.model_copy(update={"lineage": lineage, "inherited": (lineage[::-1],)})
        )
        assert lineages_of(dog.path) == [copied.lineage, *copied.inherited] == [lineage, lineage[::-1]]
        assert Session.open("dog").record.lineages == {lineage, lineage[::-1]}
    for number in (1, 2, 3):
        folder = SAMPLES / f"session-{number}"
        assert lineage_of(folder) == Session.open(folder).record.lineage
    assert lineage_of(dog.path / "nowhere") == ""


def test_a_session_renamed_by_hand_keeps_its_work(dog: Session) -> None:
    dog.path.rename(dog.path.with_name("cat"))
    assert steps("cat") == 6
    cat = Session.open("cat")
    assert [one.path.name for one in pending(cat)] == ["unet-000006"]
    assert original_of(cat) is None
    claimed, notes = claim_work(cat)
    assert (claimed.record.lineage, notes) == (dog.record.lineage, [])
    assert home_of(claimed.work).folder == cat.path  # type: ignore[union-attr]
    # Moved to another folder of sessions too.
    elsewhere = cat.path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    cat.path.rename(elsewhere / "cat")
    assert steps(elsewhere / "cat") == 6


def test_a_new_session_of_the_same_name_begins_with_nothing(dog: Session) -> None:
    shutil.rmtree(dog.path)
    new = make()
    assert (new.path, new.work == dog.work) == (dog.path, False)
    assert (steps("dog"), pending(new)) == (0, [])
    # An upload that comes late.
    put(dog, 3, new.checkpoints)
    assert steps("dog") == 0
    assert complete(dog.local_checkpoints), "what is on this machine stays"


def test_nothing_more_is_written_to_a_session_that_was_replaced(dog: Session) -> None:
    shutil.rmtree(dog.path)
    with pytest.raises(StorageError, match="the session's folder is gone"):
        dog.check_there()
    new = make()
    before = {path: path.read_bytes() for path in new.path.rglob("*") if path.is_file()}
    for write in (dog.check_there, lambda: dog.with_run_begun("unet step 6"), lambda: dog.with_run_ended("finished")):
        with pytest.raises(
            SessionBusy, match="its folder holds another session now; checkpoints of the former one are"
        ):
            write()
    assert {path: path.read_bytes() for path in new.path.rglob("*") if path.is_file()} == before


def test_the_new_name_is_named(dog: Session) -> None:
    dog.path.rename(dog.path.with_name("cat"))
    with pytest.raises(SessionBusy, match=r"dog was renamed to 'cat' .*fastdb publish cat"):
        dog.check_there()
    make()
    with pytest.raises(SessionBusy, match="dog was renamed to 'cat'"):
        dog.check_there()


def test_the_lease_of_a_former_session_does_not_reach_the_new_one(
    dog: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdb.sessions.lease.SETTLE", 0.0)
    lost: list[int] = []
    with take(dog.path, lambda note: None, lambda: lost.append(1)) as held:
        held.check()
        shutil.rmtree(dog.path)
        new = make()
        with pytest.raises(SessionBusy, match="holds another session now"):
            held._renew()
        with pytest.raises(SessionBusy, match="holds another session now"):
            held.check()
        assert lost
    assert not (new.path / LEASE).exists()


def test_a_copy_gets_a_lineage_of_its_own_at_its_first_run(dog: Session) -> None:
    copied = Session.open(shutil.copytree(dog.path, dog.path.with_name("Copy of dog")))
    assert copied.work != dog.work
    assert (steps(copied.path), steps("dog")) == (3, 6), "the work on this machine is the original's"
    own, notes = claim_work(copied)
    assert notes == [Note("copied session", "Copy of dog", "'dog'")]
    assert own.record.inherited == (dog.record.lineage,)
    assert own.record.lineage not in ("", dog.record.lineage)
    assert [one.step for one in complete(own.checkpoint_folders, lineage=own.record.lineages)] == [3]
    put(own, 7)
    assert (steps(copied.path), steps("dog")) == (7, 6)
    # Once; and the original stays what it is.
    assert claim_work(Session.open(copied.path)) == (own, [])
    assert claim_work(Session.open("dog")) == (Session.open("dog"), [])
    assert Session.open("dog").record == dog.record
    # A copy of the copy has the checkpoints of both.
    again, _ = claim_work(Session.open(shutil.copytree(copied.path, dog.path.with_name("third"))))
    assert again.record.inherited == (own.record.lineage, dog.record.lineage)
    assert steps("third") == 3


@pytest.mark.parametrize("first", ["dog", "Copy of dog"])
def test_without_work_here_the_name_in_the_file_decides(dog: Session, first: str) -> None:
    copied = shutil.copytree(dog.path, dog.path.with_name("Copy of dog"))
    shutil.rmtree(dog.work.parent)
    for name in sorted(("dog", "Copy of dog"), key=lambda name: name != first):
        claim_work(Session.open(dog.path.with_name(name)))
    assert lineage_of(dog.path) == dog.record.lineage
    assert lineage_of(copied) != dog.record.lineage


def test_of_two_copies_one_keeps_the_lineage_if_the_original_is_gone(dog: Session) -> None:
    folders = [Path(shutil.copytree(dog.path, dog.path.with_name(f"Copy {number}"))) for number in (1, 2)]
    shutil.rmtree(dog.path)
    shutil.rmtree(dog.work.parent)
    lineages = [claim_work(Session.open(folder))[0].record.lineage for folder in folders]
    assert len(set(lineages)) == 2
    assert lineages[1] == dog.record.lineage


@pytest.mark.parametrize("copy_first", [False, True])
def test_a_copy_takes_no_work_of_an_original_that_was_renamed(dog: Session, copy_first: bool) -> None:
    if copy_first:
        shutil.copytree(dog.path, dog.path.with_name("backup"))
    renamed = dog.path.rename(dog.path.with_name("kept"))
    if not copy_first:
        shutil.copytree(renamed, dog.path.with_name("backup"))
    with pytest.raises(SessionBusy, match="was renamed to 'kept' while"):
        dog.check_there()
    copy, notes = claim_work(Session.open("backup"))
    assert notes == [Note("copied session", "backup", "'kept'")]
    assert copy.record.lineage != dog.record.lineage
    assert progress_of(copy) == {"text_encoder": 0, "unet": 3}
    kept, notes = claim_work(Session.open("kept"))
    assert (notes, kept.record.lineage) == ([], dog.record.lineage)
    assert [entry.step for entry in complete(kept.local_checkpoints)] == [6]


@pytest.mark.parametrize("text", ['lineage: "{}"', "lineage: '{}'  # mine", "lineage:   {}"])
def test_a_lineage_is_read_in_every_form_of_yaml(dog: Session, text: str) -> None:
    file = dog.path / "session.yaml"
    line = f"lineage: {dog.record.lineage}"
    file.write_text(file.read_text("utf-8").replace(line, text.format(dog.record.lineage)), "utf-8")
    assert Session.open("dog").record.lineage == lineage_of(dog.path) == dog.record.lineage


def test_the_end_of_a_run_is_recorded_in_an_older_file(dog: Session) -> None:
    ended = dog.with_run_ended("finished")
    assert [run.outcome for run in ended.record.runs] == ["finished"]


def test_the_one_that_another_machine_trains_is_the_original(dog: Session) -> None:
    copied = Path(shutil.copytree(dog.path, dog.path.with_name("Copy of dog")))
    now = machine.wall()
    lease = Lease(
        owner="ann", host="colab", since=now - timedelta(minutes=9), beat=now, beats=4, term=1, token="a" * 32,
        machine="m", boot="b", pid=9, began=1,
    )  # fmt: skip
    lease_file.write(copied, lease)
    own, notes = claim_work(Session.open("dog"))
    assert notes == [Note("copied session", "dog", "'Copy of dog'")]
    assert (steps("dog"), own.record.inherited) == (6, (dog.record.lineage,)), "its work goes along"


def by_path(session: Session) -> Path:
    """The work folder of earlier versions."""
    name = hashlib.sha256(os.fsencode(session.path.resolve())).hexdigest()[:16]
    return session.work.parent / name


def test_work_that_earlier_versions_named_by_path_is_taken_over(dog: Session) -> None:
    (dog.work / "session.json").unlink()
    dog.work.rename(by_path(dog))
    assert work_folder(dog.path) == by_path(dog)
    assert steps("dog") == 6
    own, _ = claim_work(Session.open("dog"))
    assert (steps("dog"), by_path(dog).resolve()) == (6, own.work.resolve()), "a process that knows the path finds it"
    assert own.work.name == dog.record.lineage


def test_it_is_found_after_a_new_name_too(dog: Session) -> None:
    (dog.work / "session.json").unlink()
    dog.work.rename(by_path(dog))
    dog.path.rename(dog.path.with_name("cat"))
    claim_work(Session.open("cat"))
    assert steps("cat") == 6


def test_a_copy_does_not_take_it_from_the_original(dog: Session) -> None:
    (dog.work / "session.json").unlink()
    dog.work.rename(by_path(dog))
    shutil.copytree(dog.path, dog.path.with_name("Copy of dog"))
    _, notes = claim_work(Session.open("Copy of dog"))
    assert [note.kind for note in notes] == ["copied session"]
    assert (steps("Copy of dog"), steps("dog")) == (3, 6)
    claim_work(Session.open("dog"))
    assert (steps("Copy of dog"), steps("dog")) == (3, 6)


def test_it_is_not_taken_from_a_former_session_of_the_name(dog: Session) -> None:
    (dog.work / "session.json").unlink()
    former = by_path(dog)
    dog.work.rename(former)
    shutil.rmtree(dog.path)
    new, _ = claim_work(make())
    assert (steps("dog"), new.work == former) == (0, False)
    assert (former / "checkpoints" / "unet-000006").is_dir()


def test_a_restart_takes_the_work_along(dog: Session) -> None:
    aside = dog.local_checkpoints / "set-aside-1"
    aside.mkdir()
    new = restarted(dog)
    assert not cast(Home, home_of(new.work)).is_gone(), "free --unfinished would delete it"
    assert (new.record.lineage == dog.record.lineage, new.record.inherited) == (False, ())
    assert (new.local_checkpoints / "set-aside-1").is_dir()
    assert not dog.work.exists()
    assert steps("dog") == 0, "checkpoints of the earlier start do not count"


def test_a_disk_that_is_away_proves_nothing(dog: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's disk is not mounted, so a copy of it on another disk must not get its work."""
    copied = Path(shutil.copytree(dog.path, dog.path.parent.parent / "disk" / "dog"))
    shutil.rmtree(dog.path.parent)
    assert steps(copied) == 6, "its place is on a mounted disk and is empty"
    home = json.loads((dog.work / "session.json").read_text())
    (dog.work / "session.json").write_text(json.dumps({**home, "mount": str(dog.path.parent)}))
    assert steps(copied) == 3
    _, [note] = claim_work(Session.open(copied))
    assert note.kind == "copied session"
    assert complete(dog.local_checkpoints)


@pytest.mark.parametrize("name", ["Copy of dog", "dog (1)", "my dog", " dog", "a'b", "com1", "dog.", "größe", "-dog"])
def test_every_folder_that_is_listed_opens_by_its_name(dog: Session, name: str) -> None:
    shutil.copytree(dog.path, dog.path.with_name(name))
    listed = [session.name for session in Session.list() if isinstance(session, Session)]
    assert sorted(listed) == sorted([name, "dog"])
    assert [Session.open(each).name for each in listed] == listed


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".dog", "a/b", "../sessions/dog", "a\0b"])
def test_no_other_name_leads_out_of_the_folder(dog: Session, name: str) -> None:
    with pytest.raises(SessionNotFound):
        Session.open(name)


def test_a_path_that_was_known_before_the_first_run_of_a_copy_leads_to_its_work(dog: Session) -> None:
    copied = Session.open(shutil.copytree(dog.path, dog.path.with_name("copy")))
    known = work_folder(copied.path)
    known.mkdir(parents=True)
    (known / "run-1.jsonl").touch()
    own, _ = claim_work(copied)
    put(own, 4)
    assert (known / "run-1.jsonl").is_file()
    assert (known / "checkpoints" / "unet-000004").is_dir()
    again = restarted(own)
    assert known.resolve() == again.work.resolve()
    # Another copy in its place begins with nothing of it.
    shutil.rmtree(copied.path)
    other, _ = claim_work(Session.open(shutil.copytree(dog.path, copied.path)))
    assert (other.work.is_symlink(), other.local_checkpoints.exists()) == (False, False)
    assert (again.work / "run-1.jsonl").is_file()
