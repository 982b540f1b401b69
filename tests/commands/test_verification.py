"""`check` names remedies that apply, and reports what was added and whether training would resume."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, complete, save
from fastdb.commands import sessions, sharing
from fastdb.errors import StorageError
from fastdb.reporting import Note, Report
from fastdb.sessions.file_hashes import record_files
from fastdb.sessions.session import Session
from fastdb.storage.delete import remove
from fastdb.training.preflight import instances, make_recipe


class Notes(Report):
    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def of(self, kind: str) -> list[Note]:
        return [note for note in self.notes if note.kind == kind]


def put_checkpoint(session: Session, step: int) -> Checkpoint:
    """Save a checkpoint with the session's recipe."""
    recipe = make_recipe(session, instances(session), None)
    state: dict[str, Any] = {"stage": "unet", "step": step, "recipe": recipe, "lineage": session.record.lineage}

    def write(hidden: Path) -> dict[str, str]:
        data = b"weights"
        (hidden / "unet.safetensors").write_bytes(data)
        return {"unet.safetensors": hashlib.sha256(data).hexdigest()}

    return save(session.checkpoints, "unet", step, state, write)[0]


@pytest.fixture
def session(mini: Path, photos: list[Path], sessions_folder: Path) -> Session:
    made = sessions.new("cup", mini, photos[:2], token="sks", class_word="cup", settings={"text_encoder.steps": 0})
    put_checkpoint(made, 3)
    put_checkpoint(made, 6)
    return made


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def message(session: Session, **options: Any) -> str:
    with pytest.raises(StorageError) as caught:
        sessions.check(session, **options)
    return str(caught.value)


def test_a_session_as_it_was_made_has_no_remarks(session: Session) -> None:
    assert sessions.check(session) == []


def test_accepting_is_not_offered_for_a_damaged_checkpoint_and_deleting_it_works(session: Session) -> None:
    folder = session.checkpoints / "unet-000006"
    flip(folder / "unet.safetensors")
    line = message(session)
    assert line == ("cup: 1 file is damaged. Restore it from a copy, or delete it; training skips damaged checkpoints.")
    assert message(session, accept=True) == line
    remove(folder)
    assert sessions.check(session) == []
    assert [checkpoint.step for checkpoint in complete(session.checkpoints)] == [3]


def test_the_remedies_for_an_edit_and_for_damage_are_named_together_and_both_work(session: Session) -> None:
    flip(session.checkpoints / "unet-000006" / "unet.safetensors")
    [original, *_] = sorted(session.originals.iterdir())
    original.write_bytes(original.read_bytes() + b"\0")
    line = message(session)
    assert line == (
        "cup: 2 files were changed or damaged. Restore the damaged files from a copy or delete them, and accept your "
        "own changes with: fastdb check cup --accept"
    )
    remove(session.checkpoints / "unet-000006")
    assert re.fullmatch(r"cup: 1 file was changed or damaged\. .* run: fastdb check cup --accept", message(session))
    assert sessions.check(session, accept=True) == []
    assert sessions.check(session) == []


@pytest.mark.parametrize("recorded", [True, False])
def test_a_damaged_picture_is_not_accepted(session: Session, recorded: bool) -> None:
    [path, *_] = sorted(session.instance_images.glob("*.png"))
    if not recorded:
        path = shutil.copy(path, path.with_name("another.png"))
    flip(path)
    assert "1 file is damaged. Restore it from a copy, or delete it" in message(session)
    assert "1 file is damaged. Restore it from a copy, or delete it" in message(session, accept=True)
    path.unlink()
    sessions.check(session, accept=True)
    sessions.check(session)


def test_added_files_are_reported_until_they_are_accepted(session: Session) -> None:
    [image, *_] = sorted(session.instance_images.glob("*.png"))
    (session.captions / f"{image.stem}.txt").write_text("a photo of sks cup on a table")
    (session.path / "notes.md").write_text("a note")
    (session.path / "samples" / "mine.png").write_bytes(image.read_bytes())
    report = Notes()
    sessions.check(session, report=report)
    assert {note.subject.strip("'") for note in report.of("file added")} == {f"captions/{image.stem}.txt", "notes.md"}
    report = Notes()
    sessions.check(session, accept=True, report=report)
    assert report.of("file added") == []


def test_a_change_of_the_recipe_is_reported_after_accepting_too(session: Session) -> None:
    [image, *_] = sorted(session.instance_images.glob("*.png"))
    caption = session.captions / f"{image.stem}.txt"
    caption.write_text("a photo of sks cup on a table")
    for options in ({}, {"accept": True}):
        report = Notes()
        sessions.check(session, report=report, **options)
        [note] = report.of("resume refused")
        assert "changed since step 6 of the unet stage" in note.reason
        assert f"{image.name} or its caption" in note.reason
        assert "Undo the change to resume" in note.reason
    caption.unlink()
    report = Notes()
    sessions.check(session.path, accept=True, report=report)
    assert report.of("resume refused") == []


@pytest.mark.parametrize("options", [{"from_step": 3}, {"checkpoints": True}])
def test_a_copy_that_would_not_resume_is_reported_as_such(session: Session, options: dict[str, Any]) -> None:
    report = Notes()
    sharing.duplicate(session, "good", report=report, **options)
    assert report.of("resume refused") == []
    shutil.copy(next(session.instance_images.glob("*.png")), session.instance_images / "added.png")
    record_files(session.path)
    report = Notes()
    sharing.duplicate(session, "bad", report=report, **options)
    [note] = report.of("resume refused")
    assert f"changed since step {options.get('from_step', 6)} of the unet stage: added.png was added" in note.reason
