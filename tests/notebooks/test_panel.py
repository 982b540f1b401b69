"""The live panel of a training: its content, its picture, its folder and its output in a real kernel."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from fastdb.console.training_status import TrainingStatus, about
from fastdb.notebook import Panel, panel_page
from fastdb.notebook.panel_folder import PanelFolder
from fastdb.notebook.panel_frame import frame, strip
from fastdb.notebook.panel_state import PanelState
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from tests.notebooks.kernel import kernel, pictures, text

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def plan(text_encoder: int, unet: int, done: int = 0) -> dict:
    stages = {"text_encoder": {"steps": text_encoder, "done": done}, "unet": {"steps": unet, "done": 0}}
    return {"event": "plan", "stages": stages}


def steps(stage: str, numbers: range, total: int, *, seconds: float = 0.5, loss: float = 0.5) -> list[dict]:
    return [
        {"event": "step", "stage": stage, "step": n, "steps": total, "loss": loss, "seconds": 0.1, "time": n * seconds}
        for n in numbers
    ]


def fed(*events: dict) -> TrainingStatus:
    status = TrainingStatus()
    for event in events:
        status.event(event)
    return status


def test_the_time_left_covers_both_stages() -> None:
    begin = {"event": "stage", "stage": "text_encoder", "step": 0, "steps": 40}
    status = fed(plan(40, 100), begin, *steps("text_encoder", range(1, 11), 40))
    assert status.rate == pytest.approx(2.0)
    assert status.seconds_left == pytest.approx((30 + 100) * 0.5), "the next stage is taken to be as fast"
    assert status.line() == "Text encoder 10/40, 2.0 it/s, loss 0.5000, about 65 s left"
    status = fed(
        plan(40, 100),
        *steps("text_encoder", range(1, 41), 40),
        {"event": "stage", "stage": "unet", "step": 0, "steps": 100},
        *steps("unet", range(1, 11), 100, seconds=2),
    )
    assert status.seconds_left == pytest.approx(90 * 2)
    assert [about(seconds) for seconds in (0, 61, 600, 4800)] == [
        "about 1 s",
        "about 61 s",
        "about 10 min",
        "about 1 h 20 min",
    ]


def test_the_loss_curve_survives_a_resume_without_the_steps_that_were_lost() -> None:
    earlier = [*steps("unet", range(1, 51), 100, loss=0.8)]
    status = TrainingStatus(earlier)
    status.event({"event": "stage", "stage": "unet", "step": 40, "steps": 100})
    for event in steps("unet", range(41, 43), 100, loss=0.2):
        status.event(event)
    curve = dict(status.stages["unet"].curve)
    assert list(curve) == list(range(1, 43))
    assert curve[40] == pytest.approx(0.8)
    assert curve[41] == pytest.approx(0.95 * 0.8 + 0.05 * 0.2), "the mean goes on, it does not begin at one step's loss"


def test_a_long_curve_is_thinned() -> None:
    status = fed(*steps("unet", range(1, 5001), 5000))
    assert 200 <= len(status.stages["unet"].curve) <= 400
    assert status.stages["unet"].curve[-1][0] > 4900


def test_a_loss_that_is_no_number_leaves_the_curve() -> None:
    state = PanelState(
        "mug",
        "Session folder",
        fed(*steps("unet", range(1, 9), 20), *steps("unet", range(9, 12), 20, loss=float("nan"))),
    )
    content = state.as_json(beat=1, samples=0, ended=False)
    assert "NaN" not in json.dumps(content), "the browser's JSON has no NaN"
    assert state.status.stages["unet"].step == 11


def test_a_panel_of_the_next_day_names_the_checkpoint_of_the_day_before() -> None:
    state = PanelState("mug", "Session folder")
    state.resume(Path("/d/unet-000010"))
    state.event({**plan(0, 20), "stages": {"unet": {"steps": 20, "done": 10}}})
    assert state.lines() == [["Session folder", "checkpoint unet-000010"]]
    state.event(plan(0, 20))
    assert state.lines() == [["Session folder", "no checkpoint yet"]], "started over"


def test_the_content_names_what_was_saved_published_and_exported() -> None:
    state = PanelState("mug", "Google Drive", fed(plan(0, 20), *steps("unet", range(1, 11), 20)))
    assert state.lines() == [["Google Drive", "no checkpoint yet"]]
    state.event({"event": "saved", "stage": "unet", "step": 10, "path": "/w/unet-000010", "seconds": 1.0, "time": 0})
    state.event({"event": "published", "path": "/d/unet-000010", "bytes": 31_000_000, "seconds": 2.0, "time": 0})
    state.waiting = True
    state.show_file(Path("/d/mug.safetensors"), 2_132_000_000, 20)
    state.event({"event": "note", "kind": "samples failed", "subject": "5", "reason": "no space"})
    state.event({"event": "end", "outcome": "failed", "message": "the disk is full"})
    lines = dict(state.lines())
    assert lines["This machine"].startswith("checkpoint unet-000010, ")
    assert lines["Google Drive"].startswith("checkpoint unet-000010 (31.0 MB), ")
    assert lines["Google Drive"].endswith("not uploaded yet")
    assert lines["File"] == "mug.safetensors, 2.1 GB, step 20"
    content = state.as_json(beat=1, samples=0, ended=True)
    assert (content["headline"], content["tone"]) == ("Training failed", "failed")
    assert (content["error"], content["notes"]) == ("the disk is full", ["No samples of step 5: no space"])
    assert content["bars"] == [{"label": "UNet 10/20", "fraction": 0.5}]
    for part in ("Training failed", "mug.safetensors", "no space", "the disk is full"):
        assert part in state.text()


def test_the_picture_shows_how_far_it_is(tmp_path: Path) -> None:
    def blue(step: int) -> int:
        state = PanelState("mug", "Drive", fed(plan(0, 100), *steps("unet", range(1, step + 1), 100)))
        with Image.open(io.BytesIO(frame(state, b""))) as picture:
            assert picture.width == 720
            colours = picture.convert("RGB").crop((20, 60, 700, 120)).getcolors(1 << 20)
        return sum(count for count, colour in colours if colour[2] > 180 and colour[0] < 80)

    assert 1.7 < blue(80) / blue(40) < 2.3


def test_samples_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    both = strip([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"])
    with Image.open(io.BytesIO(both)) as picture:
        assert picture.size == (160, 160)
    assert strip([tmp_path / "c.png"]) == b""
    assert frame(PanelState("mug", "Drive", fed(*steps("unet", range(1, 5), 9))), both)


def test_hostile_text_cannot_leave_the_script() -> None:
    state = PanelState(HOSTILE, "Drive", prompts=[HOSTILE])
    state.add(HOSTILE)
    content = state.as_json(beat=1, samples=0, ended=True)
    html = panel_page.page_html("abc", "fastdb-panel-abc", state.command, b"png", content)
    assert html.count("</script>") == 1
    assert html.endswith("</script>")
    assert "<img src=x" not in html
    config = re.search(r"\}\)\((\{.*\})\);</script>$", html, re.DOTALL)
    assert config is not None
    assert json.loads(config[1])["state"]["prompts"] == [HOSTILE], "and arrives whole"


def test_the_folder_is_removed_with_its_files_only(tmp_path: Path) -> None:
    old = PanelFolder(tmp_path, "old")
    old.make()
    old.write("state.json", b"{}")
    os.utime(old.path / "state.json", (time.time() - 7200,) * 2)
    kept = tmp_path / "fastdb-panel-notes"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    new = PanelFolder(tmp_path, "new")
    new.make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fastdb-panel-new", "fastdb-panel-notes"]
    for name in ("state.json", "frame.png", "samples.jpg"):
        new.write(name, b"1")
        new.write(name, b"2")
    assert sorted(path.name for path in new.path.iterdir()) == ["frame.png", "samples.jpg", "state.json"]
    (new.path / "mine.txt").write_text("mine")
    new.remove()
    assert [path.name for path in new.path.iterdir()] == ["mine.txt"]


def test_a_panel_that_cannot_be_shown_ends_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The front end is gone, or a sample breaks the picture; the cell ends as the training does."""
    monkeypatch.setattr("fastdb.notebook.panel._EVERY", 0.02)
    monkeypatch.setattr("fastdb.notebook.panel._PICTURE_EVERY", 0.0)
    panel = Panel(session, place=tmp_path)
    panel._kind = "jupyter"

    def broken(*arguments: object, **named: object) -> None:
        raise ValueError("no front end")

    monkeypatch.setattr(panel._output, "show", broken)
    monkeypatch.setattr("fastdb.notebook.panel.frame", broken)
    with panel:
        panel.event({"event": "end", "outcome": "finished"})
        time.sleep(0.2)
    panel.close()
    assert set(capsys.readouterr().out.splitlines()) == {"The panel cannot be shown: ValueError: no front end"}
    assert "The panel cannot be refreshed: ValueError: no front end" in panel._state.text()


@pytest.fixture
def session(home: Path) -> Session:
    return Session.create("mug", base_model=BaseModelRecord(folder="/m", fingerprint="0"))


def test_in_a_terminal_it_prints_and_makes_no_folder(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with Panel(session) as panel:
        panel.note(Note("loading", "the model"))
        panel.event({"event": "sample", "stage": "unet", "step": 1, "path": "a.png"})
        panel.result("a line")
        panel.show_file(tmp_path / "mug.ckpt", 2_000_000, 7)
    out = capsys.readouterr().out.splitlines()
    assert out == ["Loading the model", "Sample: a.png", "a line", f"File: {tmp_path / 'mug.ckpt'} (2.0 MB, step 7)"]
    assert sorted(tmp_path.iterdir()) == before


FEED = """
import time
from pathlib import Path
from fastdb.notebook import Panel, latest
from fastdb.reporting import Note
from fastdb.sessions.session import Session

session = Session.open("mug")
with Panel(session, linger={linger}) as panel:
    panel.event({{"event": "stage", "stage": "unet", "step": 0, "steps": 20}})
    for step in range(1, 21):
        panel.event({{"event": "step", "stage": "unet", "step": step, "steps": 20, "loss": 0.5, "time": time.time()}})
        time.sleep(0.02)
    seen = sorted(path.name for folder in Path.cwd().glob("fastdb-panel-*") for path in folder.iterdir())
    panel.note(Note("loading", "the model"))
    {last}
print(seen)
"""
FINISH = 'panel.event({"event": "end", "outcome": "finished"})'


def run(home: Path, *sources: str, **environment: str) -> list:
    pytest.importorskip("ipykernel")
    cells = [new_code_cell(source, id=f"cell{number}") for number, source in enumerate(sources)]
    notebook = new_notebook(cells=cells)
    with kernel(notebook, home, **environment) as running:
        for cell in cells:
            running.run(cell.id)
    return cells


def test_in_a_kernel_one_output_holds_the_last_state_and_nothing_else_is_left(session: Session, home: Path) -> None:
    export = "latest(session).show_file(Path('mug.safetensors'), 2_100_000_000, 20)\nlatest(session).close()"
    train, _ = run(home, FEED.format(linger=60, last=FINISH), export)
    shown = [output for output in train.outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    for part in ("Training finished", "File: mug.safetensors, 2.1 GB, step 20", "Loading the model"):
        assert part in shown[0].data["text/plain"]
    html = shown[0].data["text/html"]
    assert "mug.safetensors, 2.1 GB, step 20" in html, "an export in a later cell is added"
    source = re.search(r'<img class="floor" src="data:image/png;base64,([^"]+)"', html)
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source[1]))) as picture:
        assert picture.width == 720
    assert "['frame.png', 'state.json']" in text(train)
    assert not list(home.glob("fastdb-panel-*")), "closed"


def test_the_folder_goes_when_no_news_comes_any_more(session: Session, home: Path) -> None:
    wait = (
        "for _ in range(100):\n    if not list(Path.cwd().glob('fastdb-panel-*')):\n        break\n    time.sleep(0.1)"
    )
    _, last = run(home, FEED.format(linger=0.5, last=FINISH), wait + "\nprint(list(Path.cwd().glob('fastdb-panel-*')))")
    assert text(last).strip() == "[]"


def test_an_error_ends_the_panel_and_the_cell(session: Session, home: Path) -> None:
    notebook_error = "from fastdb.errors import TrainingError\n    raise TrainingError('the disk is full')"
    source = "try:\n" + "\n".join(f"    {line}" for line in FEED.format(linger=0, last="fail()").splitlines())
    source = (
        "def fail():\n    "
        + notebook_error
        + "\n"
        + source
        + "\nexcept TrainingErrorOf as error:\n    print('raised', error)"
    )
    source = "from fastdb.errors import TrainingError as TrainingErrorOf\n" + source
    (cell,) = run(home, source)
    assert "raised the disk is full" in text(cell)
    assert "mug: Training failed" in text(cell)


def test_vs_code_gets_pictures_and_plain_lines(session: Session, home: Path) -> None:
    (cell,) = run(home, FEED.format(linger=0, last="time.sleep(1.2); " + FINISH), VSCODE_PID="1")
    assert len(pictures(cell)) == 1
    assert all("text/html" not in output.get("data", {}) for output in cell.outputs)
    assert re.search(r"UNet 20/20, \d+\.\d it/s, loss 0.5000|Starting the trainer", text(cell))
    assert not list(home.glob("fastdb-panel-*"))
