"""The live panel in a real JupyterLab: what a person sees before and after a reload of the page."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

pytest.importorskip("ipykernel")

from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from tests.notebooks import browser
from tests.notebooks.browser import TOKEN, Page, wait_for

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
FEED = """
import time
from pathlib import Path
from fastdb.notebook import Panel, latest
from fastdb.sessions.session import Session

session = Session.open("mug")
sample = session.samples / "unet-000005-1.png"
hostile = {hostile!r}
panel = Panel(session, place={place})
# Names of sessions cannot contain markup; folders that people made could.
panel._state.name += hostile
with panel:
    panel.event({{"event": "warning", "message": hostile}})
    panel.event({{"event": "stage", "stage": "unet", "step": 0, "steps": {steps}}})
    panel.event({{"event": "sample", "stage": "unet", "step": 5, "path": str(sample)}})
    for step in range(1, {steps} + 1):
        event = {{"event": "step", "stage": "unet", "step": step, "steps": {steps}, "loss": 1 / step}}
        panel.event({{**event, "time": time.time()}})
        time.sleep(0.25)
    panel.event({{"event": "end", "outcome": "finished"}})
"""
"""Feeds a real panel as a trainer does. The time in which the page is looked at is then the test's, not the CPU's."""

EXPORT = "latest(session).show_file(Path('mug.safetensors'), 2_100_000_000, 20)"
LIVE = "[...document.querySelectorAll('.fastdb-live')].filter((box) => box.offsetParent).map((box) => box.innerText)"
OPENED = "[...window.jupyterapp.shell.widgets('main')].find((widget) => widget.sessionContext)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session with a sample and hostile captions, whose folder no server serves."""
    monkeypatch.setenv("FASTDB_ROOT", str(tmp_path / "drive"))
    session = Session.create("mug", base_model=BaseModelRecord(folder="/m", fingerprint="0"))
    Image.new("RGB", (64, 64), "red").save(session.samples / "unet-000005-1.png")
    Image.new("RGB", (64, 64), "red").save(session.instance_images / "mug.png")
    (session.captions / "mug.txt").write_text(HOSTILE)
    (tmp_path / "root" / "evening").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def page(home: Path) -> Iterator[Page]:
    environment = {"FASTDB_ROOT": str(home / "drive"), "FASTDB_CACHE": str(home / "cache")}
    with browser.jupyter_lab(home, home / "root", **environment) as address, browser.browser(home) as tab:
        tab.address = f"{address}/lab/tree/evening/train.ipynb?token={TOKEN}"
        yield tab


def write(home: Path, *cells: dict) -> None:
    kernel = {"display_name": "here", "language": "python", "name": "here"}
    notebook = new_notebook(cells=list(cells), metadata={"kernelspec": kernel})
    nbformat.write(notebook, home / "root" / "evening" / "train.ipynb")


def open_notebook(page: Page) -> None:
    page.open(page.address)
    opened = "!!document.querySelector('.jp-Notebook .jp-Cell') && !!window.jupyterapp"
    wait_for(lambda: page.evaluate(opened), 90, "opening the notebook")


def run_all(page: Page) -> None:
    activate(page)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")


def activate(page: Page) -> None:
    """Wait for the kernel and make the notebook the current one of the page."""
    ready = f"{OPENED}?.sessionContext?.session?.kernel?.status"
    wait_for(lambda: page.evaluate(ready) == "idle", 90, "the start of the kernel")
    page.evaluate(f"window.jupyterapp.shell.activateById({OPENED}.id)")
    left, top = page.evaluate(
        "(({x, y}) => [x + 9, y + 9])(document.querySelector('.cm-content').getBoundingClientRect())"
    )
    page.click(left, top)
    wait_for(lambda: page.evaluate("!!window.jupyterapp.shell.currentWidget"), 20, "the click")


def panel_text(page: Page) -> str:
    """The text of the visible panel; of two, after the last is replaced, the last."""
    return (page.evaluate(LIVE) or [""])[-1]


def step(page: Page) -> int:
    """The step that the panel shows; 0 if there is none."""
    for line in panel_text(page).splitlines():
        if line.startswith("UNet ") and "/" in line:
            return int(line.split()[1].split("/")[0])
    return 0


def train_and_reload(page: Page) -> float:
    """Run all, reload the page in the middle, and return the seconds from its first cell until the panel moved."""
    open_notebook(page)
    run_all(page)
    wait_for(lambda: step(page) > 4, 90, "a moving panel")
    time.sleep(2)  # the save that the panel asks for
    before = step(page)
    page.evaluate("window.before = 1; void location.reload()")
    # On busy cores JupyterLab alone takes up to ten seconds to open.
    cell = "!window.before && !!document.querySelector('.jp-Notebook .jp-Cell')"
    wait_for(lambda: page.evaluate(cell), 60, "the page")
    began = time.monotonic()
    wait_for(lambda: step(page) > before, 60, "live progress")
    return time.monotonic() - began


@pytest.mark.parametrize("place", ["None", "session.path.parent"], ids=["files", "messages"])
def test_a_reload_keeps_the_panel_alive(home: Path, page: Page, place: str) -> None:
    """Once through files beside the notebook, once through the kernel's messages, from a folder out of reach."""
    source = FEED.format(hostile=HOSTILE, steps=160, place=place)
    write(home, new_code_cell(source, id="train"), new_code_cell(EXPORT, id="export"))
    taken = train_and_reload(page)
    assert taken < 10
    first = step(page)
    wait_for(lambda: step(page) > first + 4, 20, "more progress")
    assert page.evaluate("[...document.querySelectorAll('.fastdb-live img')].some((image) => image.naturalWidth > 100)")
    folder = Path(os.environ["FASTDB_ROOT"]) if place != "None" else home / "root" / "evening"
    assert len(list(folder.glob("fastdb-panel-*"))) == 1
    text = wait_for(lambda: (said := panel_text(page)) and "File" in said and said, 90, "the queued export")
    assert "Training finished" in text
    assert "mug.safetensors, 2.1 GB, step 20" in text
    assert HOSTILE in text, "the name and the note, as text"
    page.evaluate("document.querySelector('.fastdb-live details').open = true")
    assert panel_text(page).count(HOSTILE) == 3, "and the prompt with the caption"
    assert page.evaluate("window.hacked") is None
    for width in (1200, 400):
        page.resize(width, 900)
        page.evaluate("void window.jupyterapp.shell.collapseLeft?.()")
        time.sleep(1)
        page.screenshot(home / f"panel-{place[:4]}-{width}.png")
        fits = "[...document.querySelectorAll('.fastdb-live')].every((box) => box.scrollWidth <= box.clientWidth + 1)"
        assert page.evaluate(fits), width


def test_a_dead_kernel_is_named(home: Path, page: Page) -> None:
    own = "import os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))"
    write(home, new_code_cell(own + FEED.format(hostile="", steps=2000, place=None), id="train"))
    open_notebook(page)
    run_all(page)
    wait_for(lambda: step(page) > 4, 90, "a moving panel")
    os.kill(int((home / "root" / "evening" / "pid").read_text()), signal.SIGKILL)
    text = wait_for(lambda: "No news for" in (said := panel_text(page)) and said, 60, "the message")
    assert "fastdb show mug --follow" in text
    assert "Training: UNet" in text, "the last state stays"


def test_an_untrusted_notebook_shows_the_picture_and_what_to_do(home: Path, page: Page) -> None:
    """Yesterday's output of another server: JupyterLab shows no script of it."""
    yesterday = new_output("display_data", data={"text/html": "<script>window.old = 1</script><b>old</b>"})
    source = FEED.format(hostile=HOSTILE, steps=160, place=None)
    cells = [new_code_cell("1", id="old", outputs=[yesterday]), new_code_cell(source, id="train")]
    write(home, *cells)
    open_notebook(page)
    activate(page)
    page.evaluate(f"{OPENED}.content.activeCellIndex = 1; void window.jupyterapp.commands.execute('notebook:run-cell')")
    wait_for(lambda: step(page) > 4, 90, "a moving panel")
    time.sleep(2)
    page.evaluate("void location.reload()")
    shown = "document.querySelector('.jp-OutputArea img')?.naturalWidth"
    wait_for(
        lambda: page.evaluate("document.readyState") == "complete" and page.evaluate(shown) == 720, 60, "a picture"
    )
    text = page.evaluate("document.querySelector('.jp-Notebook').innerText")
    assert "Trust Notebook" in text
    assert "Clear All Outputs" in text
    assert step(page) == 0
    assert page.evaluate("window.old") is None
    page.screenshot(home / "untrusted.png")
    saved = json.loads((home / "root" / "evening" / "train.ipynb").read_text())
    assert len(saved["cells"][1]["outputs"]) == 1
