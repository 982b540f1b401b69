"""A real JupyterLab and a headless Chromium, driven through the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "panel"


def missing() -> str:
    """The reason why no page can be opened here; empty if one can."""
    if shutil.which("jupyter-lab") is None:
        return "needs jupyter-lab on the PATH, of any environment"
    return "" if _chromium() else "needs Chromium or Chrome on the PATH"


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)
    return value


@contextmanager
def jupyter_lab(home: Path, root: Path, **environment: str) -> Iterator[str]:
    """Serve `root`, with a kernel `here` of this very Python; yields the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "here",
        "language": "python",
        "env": {"PYTHONPATH": str(REPOSITORY), **environment},
    }
    kernels = home / "data" / "kernels" / "here"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps(spec))
    own = {f"JUPYTER_{part.upper()}_DIR": str(home / part) for part in ("data", "runtime", "config")}
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    options += [f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with open(home / "lab.log", "w") as log:
        command = [str(shutil.which("jupyter-lab")), *options]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=inherited | own)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(f"{address}/api/status?token={TOKEN}"), 120, "the start of JupyterLab")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Page:
    """A tab of the browser."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Any) -> None:
        self._loop, self._connection, self._number = loop, connection, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._number += 1
        message = json.dumps({"id": self._number, "method": method, "params": parameters})
        return self._loop.run_until_complete(asyncio.wait_for(self._answer(message), 60))

    async def _answer(self, message: str) -> dict[str, Any]:
        await self._connection.write_message(message)
        while True:
            text = await self._connection.read_message()
            assert text is not None, "the browser is gone"
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript and return its value; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int) -> None:
        """Resize the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """Save a PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(home: Path) -> Iterator[Page]:
    """Start a headless Chromium with a profile of its own."""
    profile = home / "profile"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    options += [f"--user-data-dir={profile}", "--window-size=1200,1000", "about:blank"]
    with open(home / "chromium.log", "w") as log:
        started = subprocess.Popen([str(_chromium()), *options], stdout=log, stderr=log)
    loop = asyncio.new_event_loop()
    try:
        ports = profile / "DevToolsActivePort"
        port = wait_for(lambda: ports.exists() and ports.read_text().split("\n")[0], 60, "the start of Chromium")

        def tab() -> str | None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"] if pages else None

        address = wait_for(tab, 60, "a tab")
        connection = loop.run_until_complete(_connected(address))
        page = Page(loop, connection)
        page.call("Page.enable")
        # JupyterLab has no current notebook in a window without focus, and saves none.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        yield page
    finally:
        started.terminate()
        started.wait(30)
        loop.close()


async def _connected(address: str) -> Any:
    return await websocket_connect(address, max_message_size=2**28)
