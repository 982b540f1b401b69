"""A session used by two tabs or two machines, with real trainers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


from fastdb.checkpoints.checkpoint import complete
from fastdb.runtime.paths import cache_folder, work_folder
from fastdb.sessions.events import read_events
from fastdb.sessions.lease_file import FILE, Lease, read
from fastdb.sessions.session import Session
from fastdb.storage.manifest import faults
from fastdb.training.process import is_training
from tests.training.test_trainer import Life, at

Copied = Callable[[Session], Session]


@pytest.fixture
def fastdb(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command, on the machine of a name; this one where there is none."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, on: str = "") -> subprocess.Popen[str]:
        cache = tmp_path / f"cache-{on}" if on else cache_folder()
        process = subprocess.Popen(
            [sys.executable, "-m", "fastdb", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FASTDB_CACHE": str(cache), "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Iterator[Session]:
    """A session that trains for some seconds; its trainers are ended if a test goes wrong."""
    made = make_session("cup", prior__class_images=0, text_encoder__steps=0, unet__steps=40)
    yield made
    lease = read(made.path / FILE)
    if isinstance(lease, Lease) and Path(f"/proc/{lease.pid}").exists():
        os.kill(lease.pid, signal.SIGKILL)


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=240)[0]


def trains(session: Session, step: int = 1, *, published: bool = False) -> int:
    """Wait until the session is trained by somebody, and a checkpoint at least so far is there; its process."""
    deadline = time.monotonic() + 120
    folder = session.checkpoints if published else session.local_checkpoints
    while not any(one.step >= step for one in complete(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease = read(session.path / FILE)
    assert isinstance(lease, Lease)
    return lease.pid


def farther(cache: Path, step: int) -> bool:
    """Whether a machine has saved a checkpoint after a step on its own disk."""
    return any(one.step > step for folder in cache.glob("work/*/checkpoints") for one in complete(folder))


def runs(session: Session) -> list[str]:
    return [run.outcome for run in Session.open(session.path).record.runs]


def test_of_two_tabs_one_trains_and_the_other_follows(
    session: Session, fastdb: Callable[..., subprocess.Popen]
) -> None:
    tabs = [fastdb("train", session.path) for _ in range(2)]
    texts = [said(tab) for tab in tabs]
    assert [tab.returncode for tab in tabs] == [0, 0], texts
    assert sorted("following it" in text for text in texts) == [False, True]
    assert all("Training finished. Make the file to use" in text for text in texts)
    assert runs(session) == ["finished"]
    assert not (session.path / FILE).exists()


def test_a_killed_trainer_is_said_in_both_tabs_and_the_next_start_goes_on_at_once(
    session: Session, fastdb: Callable[..., subprocess.Popen]
) -> None:
    first = fastdb("train", session.path)
    pid = trains(session, 3)
    second = fastdb("train", session.path)
    while (line := second.stdout.readline()) and "following it" not in line:
        pass
    os.kill(pid, signal.SIGKILL)
    for tab in (first, second):
        text = said(tab)
        assert tab.returncode == 2
        assert "Run the same command again; it resumes from the last checkpoint." in text
        assert "Traceback" not in text
    third = fastdb("train", session.path)
    text = said(third)
    assert third.returncode == 0, text
    assert f"The last trainer (process {pid}) crashed or was killed; resuming from its last checkpoint" in text
    assert runs(session) == ["", "finished"]


@pytest.mark.full
def test_another_machine_is_refused_whatever_it_wants_and_can_take_over(
    make_session: Callable[..., Session], fastdb: Callable[..., subprocess.Popen], photos: list[Path], tmp_path: Path
) -> None:
    session = make_session("cup", prior__class_images=0, text_encoder__steps=0, unet__steps=4000)
    published = Life(session, until=at("unet", 4))
    assert published.run() == "stopped"
    here = fastdb("train", session.path)
    pid = trains(session, 6)
    for words in (
        ["train", session.path],
        ["train", session.path, "--set", "unet.steps=50"],
        ["train", session.path, "--restart"],
        ["add-images", session.path, photos[0]],
        ["free", session.path, "--what", "samples", "--yes"],
        ["duplicate", session.path, "other", "--checkpoints"],
        ["share", session.path, tmp_path / "cup.zip", "--checkpoints"],
        ["evaluate", session.path],
    ):
        asked = fastdb(*words, on="other")
        line = said(asked).splitlines()[-1]
        assert asked.returncode == 2, (words, line)
        assert line.startswith("error: cup is being trained by "), (words, line)
    assert "in use on" in said(fastdb("show", session.path, on="other"))
    assert "in use on" in said(fastdb("sessions", "--root", session.path.parent, on="other"))
    assert "in use on" not in said(fastdb("show", session.path)), "of this machine the lock tells, and `train` follows"

    there = fastdb("train", session.path, "--take-over", on="other")
    text = said(here)
    assert here.returncode == 2
    assert text.splitlines()[-1].startswith("error: cup was taken over by "), text
    kept = work_folder(session.path) / "checkpoints"
    assert f"what was trained here since is kept in {kept}" in text.replace("\n", " ")
    local = complete(kept)[-1]
    assert faults(local.path) == []
    deadline = time.monotonic() + 120
    while (lease := read(session.path / FILE)).pid == pid or not farther(tmp_path / "cache-other", local.step):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (events,) = work_folder(session.path).glob("run-*.jsonl")
    assert read_events(events)[-1]["outcome"] == "failed"
    assert not (session.path / "logs" / events.name).exists(), "it is not its session any more"
    os.kill(lease.pid, signal.SIGTERM)
    text = said(there)
    assert there.returncode == 3, text
    assert "Took the session over from " in text
    assert runs(session) == ["stopped", "", "stopped"]
    assert complete(session.checkpoints)[-1].step > local.step
    assert all(faults(one.path) == [] for one in complete(session.checkpoints))


def test_a_copy_of_a_session_is_nobodys(
    make_session: Callable[..., Session], fastdb: Callable[..., subprocess.Popen]
) -> None:
    session = make_session("cup", prior__class_images=0, text_encoder__steps=0, unet__steps=4000)
    assert Life(session, until=at("unet", 1)).run() == "stopped"
    fastdb("train", session.path)
    pid = trains(session, 3)
    os.kill(pid, signal.SIGKILL)
    # The system releases the lock a moment after the kill.
    while is_training(session.path):
        time.sleep(0.05)
    copied = fastdb("duplicate", session.path, "other", "--checkpoints", "--root", session.path.parent)
    text = said(copied)
    assert copied.returncode == 0, text
    assert not (session.path.parent / "other" / FILE).exists()
