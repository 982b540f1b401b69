"""The demo, run for real with fewer steps: killed, resumed, exported, shown; with the network out of reach."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

import numpy as np  # noqa: E402
from filelock import FileLock  # noqa: E402
from PIL import Image  # noqa: E402

from fastdb import demo, overview, workflow  # noqa: E402
from fastdb.errors import TrainingError  # noqa: E402
from fastdb.models.export import verify_export  # noqa: E402
from fastdb.models.session_export import export_parts  # noqa: E402
from fastdb.runtime.places import work_folder  # noqa: E402
from fastdb.sessions.checkpoints import complete  # noqa: E402
from fastdb.sessions.session import Session  # noqa: E402
from fastdb.storage.manifest import faults  # noqa: E402
from fastdb.training.events import read_events  # noqa: E402

FEWER = {"text_encoder.steps": 4, "unet.steps": 20, "checkpoints.every_steps": 4, "samples.every_steps": 10}
KILLED = 9

GUARD = """
import os, sys

def _watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{event} {host}\\n")
        raise OSError(f"there is no network here, not even for {host}")

sys.addaudithook(_watch)
"""
"""As `sitecustomize.py` it is loaded by every interpreter that is started."""


@dataclass(frozen=True)
class Shown:
    """What a run of the demo left and said."""

    sheet: Path
    session: Session
    said: str
    network: Path


def refuse(log: Path, patch: pytest.MonkeyPatch) -> None:
    """Keep this process and those it starts from the network, and note each attempt."""
    guard = log.with_name(f"{log.name}.guard")
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    patch.setenv("PYTHONPATH", str(guard), prepend=os.pathsep)
    patch.setenv("NETWORK_LOG", str(log))
    log.touch()

    def no(*arguments: Any, **_: Any) -> Any:
        log.write_text(f"{log.read_text()}in this process: {arguments}\n")
        raise OSError("there is no network here")

    patch.setattr(socket, "getaddrinfo", no)
    patch.setattr(socket, "create_connection", no)
    patch.setattr(socket.socket, "connect", no)


@contextlib.contextmanager
def shrunk() -> Iterator[pytest.MonkeyPatch]:
    """The demo's settings with fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEWER.items():
            assert name in demo.SETTINGS
            patch.setitem(demo.SETTINGS, name, value)
        yield patch


@pytest.fixture(scope="module")
def shown(standin: Path, common: Path) -> Shown:
    """One run of the demo, without a network; once for all workers."""
    root, said, network = common / "demo", common / "demo.said", common / "demo.network"
    with FileLock(common / "demo.lock"):
        if not said.exists():
            with shrunk() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
                refuse(network, patch)
                demo.run_demo(root)
            said.write_text(output.getvalue(), encoding="utf-8")
    session = overview.open_session("demo", root)
    return Shown(session.path / "contact_sheet.png", session, said.read_text(encoding="utf-8"), network)


def logs(session: Session) -> list[list[dict[str, Any]]]:
    """What each trainer said, the first one first, from this machine's own disk."""
    return [read_events(path) for path in sorted(work_folder(session.path).glob("run-*.jsonl"))]


def test_it_leaves_a_whole_session(shown: Shown) -> None:
    session = shown.session
    assert sorted(path.stem for path in session.originals.glob("*.png")) == sorted(demo.PHOTOS)
    assert sorted(path.stem for path in session.instance_images.glob("*.png")) == sorted(demo.PHOTOS)
    for path in session.instance_images.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
    assert session.config.unet.steps == 20


def test_it_leaves_checkpoints_of_both_stages_that_verify(shown: Shown) -> None:
    kept = complete(shown.session.checkpoints)
    assert {checkpoint.stage for checkpoint in kept} == {"text_encoder", "unet"}
    assert {("text_encoder", 4), ("unet", 20)} <= {(checkpoint.stage, checkpoint.step) for checkpoint in kept}
    for checkpoint in kept:
        assert faults(checkpoint.path) == []


def test_the_trainer_was_really_killed_and_went_on(shown: Shown) -> None:
    first, second = logs(shown.session)
    assert [event for event in first if event["event"] == "end"] == []
    assert first[-1]["event"] != "end"
    steps = [event["step"] for event in first if event["event"] == "step" and event["stage"] == "unet"]
    assert KILLED <= steps[-1] < 20
    assert second[-1]["outcome"] == "finished"
    begun = next(event for event in second if event["event"] == "stage")
    saved = [event["step"] for event in first if event["event"] == "saved" and event["stage"] == "unet"]
    # A kill may fall between the checkpoint and the word that it is saved.
    assert begun["stage"] == "unet"
    assert begun["step"] in (saved[-1], saved[-1] + 4)
    killed, ended = shown.session.record.runs
    assert (killed.begins, killed.ended, killed.outcome) == ("text_encoder step 0", "", "")
    assert (ended.begins, ended.outcome) == (f"unet step {begun['step']}", "finished")
    assert ended.ended
    assert re.search(r"^killed process \d+ with SIGKILL after step 9 of the unet stage$", shown.said, re.MULTILINE)


def test_both_exports_are_there_and_verify(shown: Shown) -> None:
    parts, stands = export_parts(shown.session)
    assert stands == "text_encoder 4/4, unet 20/20"
    files = overview.exports_of(shown.session)
    assert [path.name for path in files] == ["demo.ckpt", "demo.safetensors"]
    for path in files:
        assert verify_export(path, parts, "fp16") == 1131


def test_samples_were_made_on_the_way(shown: Shown) -> None:
    names = {path.name for path in shown.session.samples.glob("*.png")}
    assert names == {"text_encoder-000004-1.png", "unet-000010-1.png", "unet-000020-1.png"}


def test_the_contact_sheet_is_worth_looking_at(shown: Shown) -> None:
    assert shown.sheet == shown.session.path / "contact_sheet.png"
    with Image.open(shown.sheet) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert 600 < width < 1200, "a column of labels and three of pictures"
    assert 1000 < height < 2000, "five rows of pictures"
    blank = (pixels == 255).all(axis=2)
    assert 0.2 < blank.mean() < 0.7
    bands = rows_of_pictures(blank)
    assert len(bands) == 5, bands
    for top, bottom in bands:
        band = pixels[top:bottom]
        assert band.std() > 30
        assert ((band.max(axis=2) - band.min(axis=2)) > 40).mean() > 0.05, "pictures have colours; text is grey"


def rows_of_pictures(blank: np.ndarray) -> list[tuple[int, int]]:
    """Where on the sheet most of a line is not paper, for at least a hundred lines together."""
    full = np.concatenate([[False], (~blank).mean(axis=1) > 0.2, [False]])
    edges = np.flatnonzero(full[1:] != full[:-1])
    return [(top, bottom) for top, bottom in edges.reshape(-1, 2).tolist() if bottom - top >= 100]


def test_what_it_says_is_true(shown: Shown) -> None:
    session, said = shown.session, shown.said
    for number in range(1, 7):
        assert re.search(rf"^{number}\. ", said, re.MULTILINE), number
    for path in (session.path, session.checkpoints, shown.sheet, *overview.exports_of(session)):
        assert path.exists()
        assert str(path) in said
    assert re.search(r"^Done in \d+ s\.$", said, re.MULTILINE)
    assert "Traceback" not in said


def test_it_needs_no_network(shown: Shown) -> None:
    assert shown.network.read_text() == ""


def test_the_guard_of_the_network_guards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is worth something only if an attempt would be noted, here and in a process started here."""
    log = tmp_path / "attempts"
    refuse(log, monkeypatch)
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert "in this process" in log.read_text()
    attempts = "import socket\nfor name in ('192.0.2.1', 'huggingface.co'):\n"
    attempts += "    try: socket.create_connection((name, 443), timeout=1)\n    except OSError as error: print(error)\n"
    done = subprocess.run([sys.executable, "-c", attempts], capture_output=True, text=True, check=True)
    assert done.stdout.count("there is no network here, not even for") == 2
    assert "huggingface.co" in log.read_text()


def test_a_second_run_finds_its_own_name(shown: Shown) -> None:
    """Beside the first one, in the same folder, which stays as it was."""
    before = {path: path.stat().st_mtime_ns for path in shown.session.path.rglob("*") if path.is_file()}
    with shrunk() as patch:
        patch.setitem(demo.SETTINGS, "text_encoder.steps", 0)
        patch.setitem(demo.SETTINGS, "samples.every_steps", 8)
        sheet = demo.run_demo(shown.session.path.parent)
    assert sheet == shown.session.path.parent / "demo-2" / "contact_sheet.png"
    assert sheet.is_file()
    after = {path: path.stat().st_mtime_ns for path in shown.session.path.rglob("*") if path.is_file()}
    assert after == before
    assert [session.name for session in overview.list_sessions(sheet.parents[1])] == ["demo", "demo-2"]


def test_a_trainer_that_ends_before_it_is_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to do it ends by itself."""
    for name in ("text_encoder.steps", "unet.steps"):
        monkeypatch.setitem(demo.SETTINGS, name, 0)
    session = workflow.new("brief", "standin", demo.demo_photos()[:1], root=tmp_path, settings=demo.SETTINGS)
    with pytest.raises(TrainingError, match="brief: the trainer ended before step 0 of the unet stage"):
        demo.train_and_kill(session)


def test_the_settings_of_the_demo_are_settings() -> None:
    """As they are, unshrunk; the kill falls between two checkpoints of the UNet stage."""
    from fastdb.config import Config

    config = Config().changed(demo.SETTINGS)
    killed = round(config.unet.steps * demo.KILL_AT)
    assert config.checkpoints.every_steps < killed < config.unet.steps - config.checkpoints.every_steps
    assert 20 < killed % config.checkpoints.every_steps < config.checkpoints.every_steps - 20
    assert json.dumps(demo.SETTINGS)
