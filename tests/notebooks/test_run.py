"""The notebook in a real Jupyter kernel, with real photos and a folder as Drive."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ipykernel")

from nbclient.exceptions import CellExecutionError, DeadKernelError

from fastdb.commands import sessions
from fastdb.errors import SessionError
from fastdb.sessions.events import read_events
from fastdb.sessions.file_hashes import FILES, known_files
from fastdb.sessions.session import Session, check_name
from fastdb.training.process import find
from tests.notebooks.kernel import fill, kernel, opened, pictures, text

QUICK = {
    "session_name": "pet",
    "base_model": "mini",
    "token": "sks",
    "class_word": "pet",
    "text_encoder_steps": "4",
    "unet_steps": "6",
    "class_images": "0",
    "sample_every": "3",
    "count": 2,
}


def untried(name: str) -> None:
    """Leave out the trial of the token, which costs more than these trainings."""
    session = Session.open(name)
    session.with_config(session.config.changed({"token.try": "off"}))


def test_the_first_hour_and_the_next_evening(home, photos):
    notebook = opened(**QUICK)
    fill(notebook, "photos", str(photos))
    with kernel(notebook, home) as first:
        first.run("set-up", "drive", "session")
        untried("pet")
        first.run(*[cell.id for cell in notebook.cells if cell.cell_type == "code"][3:])
    cells = {cell.id: cell for cell in notebook.cells}
    session = Session.open("pet")
    assert [run.outcome for run in session.record.runs] == ["finished"]
    assert stems(session.instance_images) == ["astronaut", "cat", "coffee"]
    assert stems(session.samples) == [
        "text_encoder-000003-1",
        "text_encoder-000004-1",
        "unet-000003-1",
        "unet-000006-1",
    ]
    assert {"text_encoder-000004", "unet-000006"} <= {path.name for path in session.checkpoints.iterdir()}
    assert (session.path / "pet.safetensors").stat().st_size > 1e6
    assert (session.path / "pet.ckpt").stat().st_size > 1e6
    assert stems(session.path / "generated") == ["0001-seed0", "0002-seed1"]
    shown = {name: len(pictures(cell)) for name, cell in cells.items() if cell.cell_type == "code"}
    assert {name: shown[name] for name in ("images", "samples", "look")} == {"images": 1, "samples": 1, "look": 1}
    assert "No Google Drive here: sessions stay on this machine" in text(cells["drive"])
    assert "pet (unet step 6)" in text(cells["look"]), "the pictures come from all that was trained"
    words = "\n".join(text(cell) for cell in cells.values() if cell.cell_type == "code")
    assert not re.search(r"fastdb train|(?<!-)--(?!-)", words), "messages name cells and fields"

    # Another kernel, as after a restart or on another day, with the form as it ships; and every cell twice.
    before, listed = contents(session), known_files(session.path) or {}
    notebook = opened(session_name="pet")
    cells = {cell.id: cell for cell in notebook.cells}
    with kernel(notebook, home) as second:
        second.run("set-up", "drive")
        assert "1 session in" in text(cells["drive"])
        second.run("session", "session")
        assert "Opened session pet with its own base model" in text(cells["session"])
        assert "keeps its own base model: mini, not sd15" in text(cells["session"])
        assert "text_encoder 4/4, unet 6/6" in text(cells["session"])
        second.run("train", "train")
        assert "Training finished" in text(cells["train"])
        second.run("images", "images", "samples", "samples", "finish", "finish")
    after = contents(session)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith("logs/")} <= {FILES}
    newly = set((known_files(session.path) or {}).items()) - set(listed.items())
    assert {name for name, _ in newly if not name.startswith("logs/")} == set()
    assert [run.outcome for run in Session.open("pet").record.runs] == ["finished"]


def test_a_training_outlives_its_kernel_and_the_stop_button_saves(home, photos):
    """The kernel dies in mid-run and the trainer does not; the same cells follow it again.

    Then the person stops it, and the same cell once more resumes it.
    """
    notebook = opened(**{**QUICK, "text_encoder_steps": "0", "unet_steps": "100000", "sample_every": "0"})
    fill(notebook, "photos", str(photos))
    train = next(cell for cell in notebook.cells if cell.id == "train")
    with kernel(notebook, home) as first:
        first.run("set-up", "drive", "session", "images")
        untried("pet")
        with Doing(first.kill, once=lambda: steps(home) >= 3), pytest.raises(DeadKernelError):
            first.run("train")
    session = Session.open("pet")
    trainer = find(session)
    try:
        assert trainer is not None, "the trainer went with the kernel"
        with kernel(notebook, home) as second:
            second.run("set-up", "drive", "session", "images")
            train.outputs = []
            following = Doing(second.interrupt, once=lambda: train.outputs and steps(home) >= 6)
            with following, pytest.raises(CellExecutionError, match="the cells below were not run"):
                second.run("train")
            assert f"is being trained already (process {trainer.pid})" in text(train)
            stopped = stop_of(session)
            assert stopped >= 6
            train.outputs = []
            again = Doing(second.interrupt, once=lambda: train.outputs and steps(home) > stopped)
            with again, pytest.raises(CellExecutionError, match="Run the Train cell again to resume"):
                second.run("train")
            assert Session.open("pet").record.runs[-1].begins == f"unet step {stopped}"
            assert stop_of(session) > stopped
    finally:
        if trainer is not None:
            trainer.stop()
    assert [run.outcome for run in Session.open("pet").record.runs] == ["stopped", "stopped"]


def test_stopping_the_train_cell_cancels_the_queued_cells(home, photos):
    """With "Run all" the cells below wait in the kernel; an interruption must not let them export a half model."""
    notebook = opened(**{**QUICK, "text_encoder_steps": "0", "unet_steps": "100000", "sample_every": "0"})
    fill(notebook, "photos", str(photos))
    with kernel(notebook, home) as running:
        running.run("set-up", "drive", "session", "images")
        untried("pet")
        with Doing(running.interrupt, once=lambda: steps(home) >= 3):
            replies = running.queue("train", "export")
    assert [reply["status"] for reply in replies] == ["error", "aborted"]
    session = Session.open("pet")
    assert not session.exports
    assert find(session) is None


def test_run_all_as_it_ships_is_the_trial(home):
    """Nothing filled in: a drawn mug on mini, with fewer steps here than a person gets."""
    notebook = opened()
    with kernel(notebook, home) as running:
        running.run("set-up", "drive", "session", "images")
        session = Session.open("try-it")
        fewer = {"text_encoder.steps": 2, "unet.steps": 3, "prior.class_images": 0, "token.try": "off"}
        session.with_config(session.config.changed(fewer))
        running.run("train", "samples", "export", "look", "finish")
    cells = {cell.id: cell for cell in notebook.cells}
    assert "session_name is empty" in text(cells["session"])
    assert len(stems(session.instance_images)) == 5
    assert len(pictures(cells["look"])) == 1
    assert len(session.exports) == 2


@pytest.mark.parametrize("name", ["sessions", "pictures"])
def test_cells_that_are_not_filled_in_do_nothing(name, home):
    notebook = opened(name=name)
    with kernel(notebook, home) as running:
        running.run()
    assert not list((home / "drive").rglob("*.yaml"))
    assert "Enter" in "\n".join(text(cell) for cell in notebook.cells if cell.cell_type == "code")


def test_the_notebook_of_sessions_renames_shares_frees_and_deletes(home, photos):
    sessions.new("pet", "mini", [photos], token="sks", class_word="pet")
    notebook = opened(name="sessions")
    cells = {cell.id: cell for cell in notebook.cells}

    def filled(cell, **fields):
        for field, value in fields.items():
            fill(notebook, field, value, cell=cell)

    with kernel(notebook, home) as running:
        running.run("set-up")
        filled("rename", session_name="pet", new_name="cat")
        filled("share", session_name="cat")
        filled("free", session_name="cat", what="samples")
        filled("delete", session_name="cat")
        running.run("rename", "share", "free", "delete")
        assert (home / "drive" / "cat.zip").exists()
        assert Session.open("cat").name == "cat"
        assert "Enter its name in type_it_again" in text(cells["delete"])
        filled("import", source=str(home / "drive" / "cat.zip"), new_name="dog")
        filled("delete", type_it_again="cat")
        running.run("import", "delete", "list")
    assert "1 session in" in text(cells["list"])
    assert not (home / "drive" / "cat").exists()
    assert len(stems(Session.open("dog").instance_images)) == 3


def test_a_fault_of_the_person_is_one_line_and_a_bug_is_not(home):
    notebook = opened(session_name="my pet")
    cells = {cell.id: cell for cell in notebook.cells}
    with pytest.raises(SessionError) as expected:
        check_name("my pet")
    with kernel(notebook, home) as running:
        running.run("set-up")
        with pytest.raises(CellExecutionError):
            running.run("session")
        assert [output.get("traceback") for output in cells["session"].outputs] == [[f"error: {expected.value}"]]
        with pytest.raises(CellExecutionError):
            running.run("samples")
        assert len(text(cells["samples"]).splitlines()) > 3, "a NameError keeps its traceback"


def test_a_form_field_that_is_not_there_is_an_error():
    with pytest.raises(LookupError, match="0 cells have a form field 'unet_step'"):
        fill(opened(), "unet_step", 3)


class Doing:
    """Do something in the background once a condition holds."""

    def __init__(self, act: Callable[[], None], once: Callable[[], bool]) -> None:
        self._thread = threading.Thread(target=self._wait, args=(act, once), daemon=True)
        self._over = threading.Event()

    def _wait(self, act: Callable[[], None], once: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not self._over.is_set() and time.monotonic() < deadline:
            if once():
                act()
                return
            time.sleep(0.1)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def steps(home) -> int:
    """The step the newest trainer is at."""
    logs = sorted(home.glob("cache/work/*/run-*.jsonl"))
    return max((event["step"] for event in read_events(logs[-1]) if event["event"] == "step"), default=0) if logs else 0


def stop_of(session) -> int:
    """The step of the newest checkpoint of the UNet."""
    return max(int(path.name.split("-")[1]) for path in session.checkpoints.glob("unet-*"))


def stems(folder) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.png"))


def contents(session) -> dict[str, bytes]:
    return {
        str(path.relative_to(session.path)): path.read_bytes() for path in session.path.rglob("*") if path.is_file()
    }
