"""Leftovers among checkpoints are skipped with a reason and left alone, and the right state is used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, newest, save
from fastdb.checkpoints.leftovers import leftovers
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.retention import prune, spare
from fastdb.config import Config
from fastdb.console import sentence
from fastdb.errors import StorageError
from fastdb.interactive import show
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE, BaseModelRecord
from fastdb.storage.manifest import faults, sha256
from tests.faultfs.mount import Mount
from tests.leftovers import CASES, expected

LAST, BEFORE = "unet-000006", "unet-000004"


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: bytes of files, targets of links, kinds of the rest."""
    found: dict[str, object] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            kind = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(kind) else os.readlink(path) if stat.S_ISLNK(kind) else kind
            found[str(path.relative_to(folder))] = content
    return found


def put(folder: Path, step: int, stage: str = "unet") -> Checkpoint:
    def write(hidden: Path) -> dict[str, str]:
        for part in (stage, "optimizer"):
            (hidden / f"{part}.safetensors").write_bytes(f"{part}{step:05d}".encode() * 50)
        return {f"{stage}.safetensors": sha256(hidden / f"{stage}.safetensors")}

    return save(folder, stage, step, {"stage": stage, "step": step}, write)[0]


def make(root: Path | None = None) -> Session:
    """A session of one stage with three checkpoints."""
    config = Config().changed({"text_encoder.steps": 0, "unet.steps": 8})
    base = BaseModelRecord(folder="/models/some", fingerprint="0")
    session = Session.create("dog", base_model=base, config=config, root=root)
    for step in (2, 4, 6):
        put(session.checkpoints, step)
    return session


@pytest.mark.parametrize("name", CASES)
def test_a_leftover_is_skipped_with_a_reason(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case, session = CASES[name], make()
    case.make(session.checkpoints, LAST)
    before, reason = tree(session.path), expected(case, LAST)
    stands = standing(session)
    assert stands.last is not None
    assert stands.last.path.name == (BEFORE if case.older else LAST)
    assert {part: path.name for part, path in stands.weights.items()} == {"unet": "unet.safetensors"}
    assert len(stands.skipped) == bool(reason), stands.skipped
    if reason:
        assert stands.skipped[0].reason.startswith(reason)
        assert sentence(stands.skipped[0]).isprintable()
    show(session)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(shown) == bool(reason and case.seen_by_size), shown
    assert all(reason in line for line in shown)
    spare(session.checkpoints, "unet")
    assert tree(session.path) == before, "nothing is touched by looking"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.older])
def test_no_older_one_goes_for_it_and_the_next_save_loses_nothing(name: str) -> None:
    session = make()
    CASES[name].make(session.checkpoints, LAST)
    left = {entry for entry in tree(session.path).items() if LAST in entry[0]}
    assert prune(session.checkpoints, "unet") == []
    found, _ = newest(session.checkpoints, "unet")
    assert found is not None
    assert found.path.name == BEFORE
    put(session.checkpoints, 6)
    put(session.checkpoints, 8)
    prune(session.checkpoints, "unet")
    contents = list(tree(session.path).values())
    assert all(content in contents for _, content in left)
    assert standing(session).done("unet") == 8


def test_complete_checkpoints_and_the_readme_give_no_notes() -> None:
    session = make()
    assert standing(session).skipped == ()
    assert leftovers(session) == []


def test_all_of_them_at_once_leave_the_oldest() -> None:
    session = make()
    for step in range(8, 8 + len(CASES)):
        put(session.checkpoints, step)
    for number, case in enumerate(CASES.values(), start=8):
        if case.older:
            case.make(session.checkpoints, f"unet-{number:06d}")
        else:
            (session.checkpoints / f"unet-{number:06d}" / "state.json").unlink()
    stands = standing(session)
    assert stands.last is not None
    assert stands.last.path.name == LAST
    assert len(stands.skipped) == len(CASES)


@pytest.mark.parametrize("error", ["EIO", "EACCES"])
def test_an_unreadable_checkpoint_is_skipped(error: str, tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        before = tree(session.path)
        drive.fail("open", 1, error, persistent=True, below=session.checkpoints / LAST)
        stands = standing(session)
        assert stands.last is not None
        assert stands.last.path.name == BEFORE
        kind = {"EIO": "OSError", "EACCES": "PermissionError"}[error]
        assert stands.skipped == (Note("checkpoint skipped", LAST, f"its manifest cannot be read ({kind})"),)
        assert prune(session.checkpoints, "unet") == []
        drive.heal()
        assert tree(session.path) == before


@pytest.mark.parametrize("error", ["EIO", "EACCES"])
def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(error: str, tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        drive.unreadable(session.checkpoints, error)
        for look in (standing, leftovers):
            with pytest.raises(StorageError, match="checkpoints: "):
                look(session)


def test_a_drive_that_is_away_and_back(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        before = tree(session.path)
        drive.away(1.5)
        with pytest.raises(StorageError, match="does not answer"):
            standing(session)
        while not os.path.exists(session.path):
            os.sched_yield()
        assert standing(session).done("unet") == 6
        assert standing(session).skipped == ()
        assert tree(session.path) == before


def test_on_a_read_only_mount_all_is_seen_and_nothing_written(tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        CASES["missing file"].make(session.checkpoints, LAST)
        before = tree(session.path)
        drive.read_only()
        opened = Session.open("dog", drive.path / "sessions")
        assert standing(opened).done("unet") == 4
        show(opened)
        with pytest.raises(StorageError, match="the disk is read-only"):
            put(session.checkpoints, 8)
        notes = prune(session.checkpoints, "unet")
        assert all(note.kind == "checkpoint not removed" for note in notes)
        assert tree(session.path) == before


def test_a_checkpoint_folder_that_drive_made_twice(tmp_path: Path) -> None:
    """The mount had forgotten the first one: the trainer's own, written later, is the one called (1)."""
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        drive.forget(session.checkpoints / LAST)
        put(session.checkpoints, 6)
        assert standing(session).done("unet") == 6
        drive.hear()
        stands = standing(session)
        assert stands.done("unet") == 6
        assert any(f"a second {LAST}" in note.reason for note in stands.skipped)


def test_a_full_account_keeps_the_older_ones(tmp_path: Path) -> None:
    """Nothing fails, and on the next machine the last uploaded state is whole."""
    with Mount(tmp_path) as drive:
        session = make(drive.path / "sessions")
        drive.full()
        for step in (8, 10, 12, 14, 16, 18):
            put(session.checkpoints, step)
            notes = prune(session.checkpoints, "unet")
        assert notes == [Note("uploads pending", "6")]
        other = drive.lose()
        opened = Session.open("dog", other.path / "sessions")
        stands = standing(opened)
        assert stands.done("unet") == 6
        assert all(note.reason == "it has no manifest, so it was never finished" for note in stands.skipped)
        assert len(stands.skipped) == 6
        assert faults(opened.checkpoints / LAST) == []


def test_a_second_session_yaml_is_told_and_the_first_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    session = make()
    (session.path / "session (1).yaml").write_text((session.path / FILE).read_text().replace("steps: 8", "steps: 9"))
    assert show("dog").config.unet.steps == 8
    assert "session (1).yaml: Google Drive shows it as a second session.yaml" in capsys.readouterr().out


def test_a_pipe_among_checkpoints_does_not_hold_up_the_command() -> None:
    session = make()
    CASES["weights that are a pipe"].make(session.checkpoints, LAST)
    command = [sys.executable, "-m", "fastdb", "show", "dog"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{LAST}: unet.safetensors is not a regular file" in done.stdout
