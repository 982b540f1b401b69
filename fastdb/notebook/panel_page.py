"""HTML of the training panel, and the front end that shows it."""

from __future__ import annotations

import base64
import functools
import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastdb.console.terminal import notebook_kernel
from fastdb.runtime.drive import ELSEWHERE, colab

FrontEnd = Literal["jupyter", "updates", "vscode", "terminal"]
"""`jupyter` runs the panel's script; `updates` and `vscode` show pictures that the kernel sends; `terminal` prints."""

_FLOOR = (
    "If this picture stands still, the notebook is not trusted: choose <b>Trust Notebook</b> in the command palette "
    "or the File menu, or <b>Clear All Outputs</b> in the Edit menu, save, and reload the page. "
    "If there is no picture, its training has ended or ran on another server."
)
_KERNEL = re.compile(r"kernel-([0-9a-fA-F-]{8,})")


def front_end() -> FrontEnd:
    """Return what shows the output of this process."""
    kernel = notebook_kernel()
    if kernel is None:
        return "terminal"
    if colab("output") is not None or any(name in os.environ for name in ELSEWHERE):
        return "updates"
    names = getattr(kernel.shell, "user_ns", {})
    if "__vsc_ipynb_file__" in names or any(name in os.environ for name in ("VSCODE_PID", "VSCODE_CWD")):
        return "vscode"
    return "jupyter"


def page_html(
    identity: str,
    folder: str,
    command: str,
    picture: bytes = b"",
    state: dict[str, Any] | None = None,
    *,
    messages: bool = False,
) -> str:
    """Return the output of a panel.

    Args:
        folder: name of the panel's folder beside the notebook.
        command: the command that follows the training in a terminal.
        picture: the still picture, stored in the output; by default that of the folder.
        state: the last content of a panel that has ended.
        messages: the page cannot read the folder, so the script reads the kernel's messages at once.
    """
    config = {
        "id": identity,
        "folder": folder,
        "channel": channel(identity),
        "kernel": kernel_id(),
        "command": command,
        "state": state,
        "messages": messages,
    }
    source = data_address(picture, "image/png") if picture else f"{folder}/frame.png"
    text = "" if picture else f'<p class="floor"><small>{_FLOOR}</small></p>'
    return (
        f'<style>{_part("panel.css")}</style><div id="fastdb-panel-{identity}">'
        f'<img class="floor" src="{source}" width="720" style="max-width: 100%" alt="Training panel">{text}</div>'
        f"<script>{_part('panel.js').replace('CONFIG', script_json(config))}</script>"
    )


def script_json(value: Any) -> str:
    """Return JSON that cannot end the script element that contains it."""
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_address(data: bytes, kind: str) -> str:
    """Return a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def channel(identity: str) -> str:
    """Return the display id of the messages that only the panel's script reads."""
    return f"fastdb-channel-{identity}"


def kernel_id() -> str:
    """Return the server's id of this kernel; empty if it has none."""
    found = _KERNEL.search(_connection_file().stem)
    return found[1] if found else ""


def served(folder: Path) -> bool | None:
    """Return whether a Jupyter server of this machine serves a folder's files; None if that is not known."""
    records = sorted(_connection_file().parent.glob("jpserver-*.json"))
    roots = []
    for record in records:
        try:
            roots.append(Path(json.loads(record.read_text(encoding="utf-8"))["root_dir"]).resolve())
        except (OSError, ValueError, KeyError, TypeError):
            # Written by another version, or just removed.
            continue
    place = folder.resolve()
    below = [place.relative_to(root) for root in roots if place.is_relative_to(root)]
    if below:
        return any(not any(part.startswith(".") for part in path.parts) for path in below)
    return False if roots else None


@dataclass
class Output:
    """An output of the running cell that can be replaced later."""

    identity: str
    _shown: bool = False

    def show(self, html: str = "", picture: bytes = b"", text: str = "") -> None:
        """Show or replace the output; of several kinds a front end shows the richest."""
        data: dict[str, Any] = {"text/plain": text}
        if picture:
            data["image/png"] = base64.b64encode(picture).decode()
        if html:
            data["text/html"] = html
        self._publish(data, f"fastdb-output-{self.identity}", update=self._shown)
        self._shown = True

    def send(self, state: dict[str, Any]) -> None:
        """Send content to the panel's script only: no output has this display id."""
        self._publish({"application/json": state}, channel(self.identity), update=True)

    def _publish(self, data: dict[str, Any], display_id: str, *, update: bool) -> None:
        display = importlib.import_module("IPython.display")
        display.publish_display_data(data, transient={"display_id": display_id}, update=update)


@functools.cache
def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").strip()


def _connection_file() -> Path:
    kernel = notebook_kernel()
    parent = getattr(kernel, "parent", None)
    return Path(str(getattr(parent, "abs_connection_file", "") or getattr(parent, "connection_file", "")))
