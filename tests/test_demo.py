"""The demo with fewer steps, also killed and resumed, without network."""

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

import numpy as np
from filelock import FileLock
from PIL import Image

from fastdb import demo
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.export_parts import export_parts
from fastdb.commands import sessions
from fastdb.config import Config
from fastdb.errors import TrainingError
from fastdb.formats.reader import open_tensors
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo
from fastdb.measures.drawn import FIGURES
from fastdb.measures.shots import CLASS, COLOURED, CONTEXT, OTHERS, SUBJECT
from fastdb.measures.values import Taken
from fastdb.models.export import _check_described, plan_from_parts
from fastdb.models.layouts.tables import layout_of
from fastdb.models.mini_settings import recommended
from fastdb.models.resolve import ensure_base
from fastdb.runtime import isolation
from fastdb.runtime.paths import work_folder
from fastdb.sessions.events import read_events
from fastdb.sessions.session import Session
from fastdb.storage.manifest import faults
from fastdb.training.process import Running
from fastdb.world.draw import draw
from fastdb.world.scene import BACKGROUNDS, COLOURS, Scene, parse_prompt
from fastdb.world.subjects import PLACES, SUBJECTS

FEWER: dict[str, Any] = {
    "token.try": "off",
    "text_encoder.steps": 4,
    "text_encoder.learning_rate": 1e-2,
    "unet.steps": 20,
    "unet.learning_rate": 2e-3,
    "prior.class_images": 6,
    "prior.steps": 4,
    "checkpoints.every_steps": 4,
    "samples.every_steps": 10,
    "samples.steps": 4,
}
"""At rates at which even so few steps are seen in the pictures."""

KILLED = 10
SAMPLER_STEPS = 6

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
    # The trainer does not inherit these variables otherwise.
    isolated = isolation.environment
    patch.setattr(isolation, "environment", lambda variables, _: isolated(variables, ["PYTHONPATH", "NETWORK_LOG"]))
    log.touch()

    def no(*arguments: Any, **_: Any) -> Any:
        log.write_text(f"{log.read_text()}in this process: {arguments}\n")
        raise OSError("there is no network here")

    patch.setattr(socket, "getaddrinfo", no)
    patch.setattr(socket, "create_connection", no)
    patch.setattr(socket.socket, "connect", no)


@contextlib.contextmanager
def shrunk() -> Iterator[pytest.MonkeyPatch]:
    """The demo with fewer steps, and fewer pictures to measure."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEWER.items():
            patch.setitem(demo.SETTINGS, name, value)
        for group in demo.TIMES:
            patch.setitem(demo.TIMES, group, 1)
        patch.setitem(demo.DRAWING, "steps", SAMPLER_STEPS)
        yield patch


@pytest.fixture(scope="module")
def shown(common: Path) -> Shown:
    """One run of the demo, without a network; once for all workers."""
    root, said, network = common / "demo", common / "demo.said", common / "demo.network"
    with FileLock(common / "demo.lock"):
        if not said.exists():
            with shrunk() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
                refuse(network, patch)
                demo.run_demo(root)
            said.write_text(output.getvalue(), encoding="utf-8")
    session = Session.open("demo", root)
    return Shown(session.path / "contact_sheet.png", session, said.read_text(encoding="utf-8"), network)


def logs(session: Session) -> list[list[dict[str, Any]]]:
    """What each trainer said, the first one first, from this machine's own disk."""
    return [read_events(path) for path in sorted(work_folder(session.path).glob("run-*.jsonl"))]


def test_the_demo_leaves_a_complete_session(shown: Shown) -> None:
    session, five = shown.session, [f"mug-{number}" for number in range(1, 6)]
    assert [path.stem for path in photos_in(session.originals)] == five
    assert [path.stem for path in photos_in(session.instance_images)] == five
    for path, photo in zip(photos_in(session.instance_images), SUBJECTS["mug"].photos(), strict=True):
        assert np.array_equal(read_photo(path), photo)
    assert {path.stem: path.read_text(encoding="utf-8").strip() for path in session.captions.glob("mug-*.txt")} == {
        "mug-1": "on a plain grey background",
        "mug-2": "on a striped blue background",
        "mug-3": "on a dotted green background",
        "mug-4": "on a checkered white background",
        "mug-5": "on a plain purple background",
    }
    record = session.record
    assert (record.base_model.folder, record.subject.token, record.subject.class_word) == ("mini", "sks", "mug")
    assert session.config.captions.instance_prompt == "a photo of a sks mug"
    assert session.config.unet.steps == 20


def test_the_demo_trains_with_prior_preservation(shown: Shown) -> None:
    """As recommended for mini: class images of several classes."""
    recommends = Config().changed(recommended("mini", "mug"))
    assert shown.session.config.prior.prompts == recommends.prior.prompts
    assert len(set(recommends.prior.prompts)) > 20
    assert len(photos_in(shown.session.class_images)) == 6
    steps = [event for log in logs(shown.session) for event in log if event["event"] == "step"]
    assert len(steps) >= 24
    assert all(event["prior_loss"] > 0 for event in steps)


def test_the_demo_leaves_valid_checkpoints_of_both_stages(shown: Shown) -> None:
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
    assert re.search(r"^Killed process \d+ with SIGKILL after step 10 of the unet stage$", shown.said, re.MULTILINE)


def test_both_exports_are_there_and_verify(shown: Shown) -> None:
    parts, done = export_parts(shown.session, ensure_base(shown.session))
    assert done == {"text_encoder": 4, "unet": 20}
    exports = shown.session.exports
    assert [path.name for path in exports] == ["demo.ckpt", "demo.safetensors"]
    files = {part: open_tensors(file) for part, file in parts.items()}
    plan = plan_from_parts(layout_of("sd1"), files, torch.float16)
    assert len(plan) == 1131
    for path in exports:
        _check_described(path, plan)
        exported = open_tensors(path)
        assert all(torch.equal(exported.read(one.entry.name), one.tensor()) for one in plan)


def test_samples_were_made_on_the_way(shown: Shown) -> None:
    names = {path.name for path in shown.session.samples.glob("*.png")}
    assert names == {"text_encoder-000004-1.png", "unet-000010-1.png", "unet-000020-1.png"}


def test_the_contact_sheet_is_worth_looking_at(shown: Shown) -> None:
    assert shown.sheet == shown.session.path / "contact_sheet.png"
    pixels = on(shown.sheet)
    height, width, _ = pixels.shape
    assert 1000 < width <= 1280, "fits a page"
    assert 900 < height < 1300
    blank = (pixels == 255).all(axis=2)
    assert 0.2 < blank.mean() < 0.7
    assert [len(row) for row in cells(pixels)] == [5, 5, 5, 10, 10]
    assert all(cell.std() > 10 for row in cells(pixels) for cell in row)
    mugs, rest = cells(pixels)[:3], cells(pixels)[3:]
    assert {cell.shape for row in mugs for cell in row} == {(184, 184, 3)}
    assert all(60 < cell.shape[0] < 100 for row in rest for cell in row), "what is beside the point is small"


def test_the_contact_sheet_shows_what_it_says(shown: Shown) -> None:
    """The photos, the untrained base's pictures and those of the exported file, each in its place."""
    photos, before, after, *pairs = cells(on(shown.sheet))
    for cell, photo in zip(photos, SUBJECTS["mug"].photos(), strict=True):
        assert unlike(cell, photo) < 1
    with shrunk():
        file = shown.session.path / "demo.safetensors"
        untrained = sessions.new("untrained", "mini")
        made = {"base": by_prompt(demo.pictures(untrained)), "file": by_prompt(demo.pictures(file))}
    mug = [*demo.PROMPTS[SUBJECT], *demo.PROMPTS[CONTEXT]]
    rest = [*demo.PROMPTS[CLASS], *demo.PROMPTS[COLOURED], *demo.PROMPTS[OTHERS]]
    for row, source in ((before, "base"), (after, "file")):
        for cell, prompt in zip(row, mug, strict=True):
            assert unlike(cell, made[source][prompt]) < 2
            assert unlike(cell, made["base" if source == "file" else "file"][prompt]) > 4
    for number, cell in enumerate(pairs[0] + pairs[1]):
        assert unlike(cell, made["file" if number % 2 else "base"][rest[number // 2]]) < 2.5, (
            number,
            rest[number // 2],
        )


def test_the_contact_sheet_says_what_happened(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(demo, "contact_sheet", lambda rows, **texts: said.update(texts, rows=rows))
    taken = [Taken(shot, Image.new("RGB", (64, 64))) for shot in demo.shots()]
    demo.draw(shown.session, KILLED, taken, taken)
    begins = shown.session.record.runs[-1].begins
    assert begins in ("unet step 8", "unet step 12")
    assert "killed on purpose at step 10 of 20 " in said["note"]
    assert f"resumed from step {begins.split()[-1]}." in said["note"]
    captions = [[cell.caption for cell in row.cells] for row in said["rows"]]
    assert captions[2][:2] == ["a photo of a sks mug", "… on a dotted yellow background"]
    assert [caption for row in captions[3:] for caption in row] == [
        prompt for group in (CLASS, COLOURED, OTHERS) for prompt in demo.PROMPTS[group]
    ]


def on(sheet: Path) -> np.ndarray:
    """The pixels of a picture, (height, width, 3)."""
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def cells(pixels: np.ndarray) -> list[list[np.ndarray]]:
    """The pictures on the sheet, row by row, found by their outlines; two in one outline where an arrow leads."""
    edges: dict[tuple[int, int], list[int]] = {}
    rule = (pixels == (0xE4, 0xE4, 0xE8)).all(axis=2).astype(int)
    for x in range(pixels.shape[1]):
        changes = np.flatnonzero(np.diff(rule[:, x], prepend=0, append=0))
        for top, bottom in changes.reshape(-1, 2).tolist():
            if bottom - top >= 60:
                edges.setdefault((top, bottom), []).append(x)
    found = []
    for (top, bottom), columns in sorted(edges.items()):
        row = []
        for left, right in zip(columns[::2], columns[1::2], strict=True):
            inside = pixels[top + 1 : bottom - 1, left + 1 : right]
            height, width, _ = inside.shape
            row += [inside] if width == height else [inside[:, :height], inside[:, width - height :]]
        found.append(row)
    return found


def unlike(cell: np.ndarray, picture: Image.Image) -> float:
    """How far a cell is from a picture of its size, of 255, on average."""
    height, width, _ = cell.shape
    return float(abs(cell - np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))).mean())


def by_prompt(taken: list[Taken]) -> dict[str, Image.Image]:
    """The first picture of each prompt."""
    return {one.shot.prompt: one.picture for one in reversed(taken)}


def test_what_it_says_is_true(shown: Shown) -> None:
    session, said = shown.session, shown.said
    for number in range(1, 7):
        assert re.search(rf"^{number}\. ", said, re.MULTILINE), number
    for path in (session.path, session.checkpoints, shown.sheet, *session.exports):
        assert path.exists()
        assert str(path) in said
    assert re.search(r"^Done in \d+ s\.$", said, re.MULTILINE)
    assert "Traceback" not in said


def test_the_demo_measures_what_it_shows(shown: Shown) -> None:
    """A line a figure of the drawn world, counted before and after; a known picture is counted as what it is."""
    found = re.findall(r"^(.+?)  +(\d+) of (\d+)  +(\d+) of (\d+)  +(all|none|as before)$", shown.said, re.MULTILINE)
    assert [line[0] for line in found] == [text for _, text, _ in demo.READINGS]
    assert {name for name, _, _ in demo.READINGS} <= {figure.name for figure in FIGURES}
    assert [line[2] for line in found] == [line[4] for line in found] == ["1", "4", "1", "4", "5"]
    assert "Read back from the pixels; every colour must be in its place, that of the diamond too" in shown.said


def test_what_is_measured_is_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    mug = SUBJECTS["mug"]
    without, everywhere = [
        [Taken(shot, draw(scene)) for shot in demo.shots()]
        for scene in (Scene("mug", "red", "white", "plain", COLOURS["red"], BACKGROUNDS["white"]), mug.scene())
    ]
    demo.measure(without, everywhere)
    said = capsys.readouterr().out
    assert re.search(
        r"^a photo of a sks mug: its colours and its diamond in their places +0 of 4 +4 of 4 +all$", said, re.MULTILINE
    )
    assert re.search(r"^a photo of a sks mug on a .* 0 of 8 +0 of 8 +all$", said, re.MULTILINE)
    assert re.search(r"^a photo of a mug: shows this mug +0 of 4 +4 of 4 +none$", said, re.MULTILINE)
    assert re.search(r"^a photo of a red \(\.\.\.\) mug: .* 0 of 8 +8 of 8 +none$", said, re.MULTILINE)


def test_what_is_asked_for() -> None:
    """Backgrounds that no photo has, a seed for every picture, groups that the readings know."""
    contexts = [parse_prompt(prompt) for prompt in demo.PROMPTS[CONTEXT]]
    assert all(demo.PROMPTS[CONTEXT][n].startswith(f"{demo.PROMPT} on a ") for n in range(4))
    assert not {f"{asked.texture} {asked.background}" for asked in contexts} & {
        f"{texture} {background}" for background, texture, _ in PLACES
    }
    assert all(None not in (asked.shape, asked.background, asked.texture) for asked in contexts)
    for prompt in (*demo.PROMPTS[COLOURED], *demo.PROMPTS[OTHERS]):
        asked = parse_prompt(prompt)
        assert None not in (asked.shape, asked.colour, asked.background, asked.texture)
        assert (asked.shape == "mug") == (prompt in demo.PROMPTS[COLOURED])
    assert set(demo.PROMPTS) == set(demo.TIMES) == {SUBJECT, CONTEXT, CLASS, COLOURED, OTHERS}
    assert len({shot.seed for shot in demo.shots()}) == len(demo.shots()) == 34


def test_the_demo_needs_no_network(shown: Shown) -> None:
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
    # A trainer is started like this.
    (log.with_name("attempts.guard") / "attempts.py").write_text(attempts, encoding="utf-8")
    with open(tmp_path / "out", "w", encoding="utf-8") as output:
        assert isolation.start_module("attempts", [], tmp_path, output).wait() == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == done.stdout


def test_a_second_run_finds_its_own_name(shown: Shown) -> None:
    """Beside the first one, in the same folder, which stays as it was; this time nobody kills the trainer."""
    before = {path: path.stat().st_mtime_ns for path in shown.session.path.rglob("*") if path.is_file()}
    with shrunk() as patch:
        for name in ("text_encoder.steps", "prior.class_images", "samples.every_steps"):
            patch.setitem(demo.SETTINGS, name, 0)
        patch.setitem(demo.SETTINGS, "unet.steps", 2)
        patch.setitem(demo.DRAWING, "steps", 1)
        patch.setattr(demo, "train_and_kill", lambda _: 1)
        sheet = demo.run_demo(shown.session.path.parent)
    assert sheet == shown.session.path.parent / "demo-2" / "contact_sheet.png"
    assert sheet.is_file()
    after = {path: path.stat().st_mtime_ns for path in shown.session.path.rglob("*") if path.is_file()}
    assert after == before
    assert [session.name for session in (row.session for row in sessions.list_sessions(sheet.parents[1]).rows)] == [
        "demo",
        "demo-2",
    ]


def test_a_trainer_that_ends_before_it_is_killed_is_said(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second one of the demo did, which was through before anybody looked."""
    ended = sorted(work_folder(shown.session.path).glob("run-*.jsonl"))[1]
    assert any(event["event"] == "step" and event["step"] == KILLED for event in read_events(ended))
    monkeypatch.setattr(demo.process, "start", lambda _: Running(os.getpid(), ended, alive=lambda: False))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it kills what runs no more"))
    with pytest.raises(TrainingError, match="demo: the trainer ended before step 10 of the unet stage"):
        demo.train_and_kill(shown.session)


def test_the_settings_of_the_demo_are_settings() -> None:
    """As they are, unshrunk; the kill falls well between two checkpoints of the UNet stage."""
    config = Config().changed({**recommended("mini", demo.CLASS_WORD), **demo.SETTINGS})
    assert config.prior.class_images > 0
    killed, every = round(config.unet.steps * demo.KILL_AT), config.checkpoints.every_steps
    assert every < killed < config.unet.steps - every
    assert every / 5 < killed % every < every * 4 / 5
    assert json.dumps(demo.SETTINGS)
