"""Real headless Jupyter: the notebook's cells, its forms filled in, run in a kernel of this very Python."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "fast-DreamBooth.ipynb"
SECONDS = 300
FIELD = re.compile(r"(?m)^(?P<name>\w+) = (?P<value>.+?)  # @param\b")


def opened(**fields: Any) -> NotebookNode:
    """The notebook with form fields filled in; each field must be in exactly one cell."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in fields.items():
        fill(notebook, name, value)
    return notebook


def fill(notebook: NotebookNode, name: str, value: Any) -> None:
    """Replace the literal of one form field."""
    holding = [cell for cell in notebook.cells if name in {found["name"] for found in FIELD.finditer(cell.source)}]
    if len(holding) != 1:
        raise LookupError(f"{len(holding)} cells have a form field {name!r}")
    cell = holding[0]
    cell.source = FIELD.sub(
        lambda found: found[0].replace(found["value"], repr(value), 1) if found["name"] == name else found[0],
        cell.source,
    )


class Kernel:
    """A running kernel and the notebook it runs."""

    def __init__(self, client: NotebookClient) -> None:
        self._client, self._notebook = client, client.nb

    def run(self, *names: str) -> NotebookNode:
        """Run the cells of these names in order, or every cell; returns the last one with its outputs."""
        cells = list(enumerate(self._notebook.cells))
        wanted = [(at, cell) for name in names for at, cell in cells if cell.id == name]
        assert len(wanted) == len(names), "a cell is missing"
        for at, cell in wanted or [pair for pair in cells if pair[1].cell_type == "code"]:
            last = self._client.execute_cell(cell, at)
        return last

    def kill(self) -> None:
        """End it with no time to say goodbye."""
        os.kill(self._client.km.provisioner.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Press the stop button."""
        os.kill(self._client.km.provisioner.pid, signal.SIGINT)


@contextmanager
def kernel(notebook: NotebookNode, home: Path, **environment: str) -> Iterator[Kernel]:
    """Start a kernel in `home`, where its sessions, its cache and Jupyter's own files lie as well."""
    manager = AsyncKernelManager(kernel_name="here", kernel_spec_manager=_kernelspec(home))
    client = NotebookClient(
        notebook, km=manager, timeout=SECONDS, startup_timeout=SECONDS, resources={"metadata": {"path": str(home)}}
    )
    own = {
        "FASTDB_ROOT": str(home / "drive"),
        "FASTDB_CACHE": str(home / "cache"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "OMP_NUM_THREADS": "1",
    }
    with client.setup_kernel(cleanup_kc=True, env={**os.environ, **own, **environment}):
        yield Kernel(client)


def text(cell: NotebookNode) -> str:
    """What a cell printed and showed as text, and the text of its error."""
    said = []
    for output in cell.outputs:
        if output.output_type == "error":
            said.append("\n".join(output.traceback))
        else:
            said.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(said)


def pictures(cell: NotebookNode) -> list[str]:
    """The pictures a cell shows, each as base64 of a PNG."""
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


def _kernelspec(home: Path) -> KernelSpecManager:
    """A kernelspec of our own, so that none that is installed here can be taken for it."""
    folder = home / "kernels" / "here"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "here", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)
