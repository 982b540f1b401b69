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
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat import NotebookNode

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "fast-DreamBooth.ipynb"
SECONDS = 300
FIELD = re.compile(r"(?m)^(?P<name>\w+) = (?P<value>.+?)  # @param\b")


def opened(name: str = "fast-DreamBooth", **fields: Any) -> NotebookNode:
    """A notebook with form fields filled in; each field must be in exactly one cell."""
    notebook = nbformat.read(NOTEBOOK.with_name(f"{name}.ipynb"), as_version=4)
    for name, value in fields.items():
        fill(notebook, name, value)
    return notebook


def fill(notebook: NotebookNode, name: str, value: Any, cell: str = "") -> None:
    """Replace the literal of one form field, in the cell of that name if several have it."""
    cells = [each for each in notebook.cells if cell in ("", each.id)]
    holding = [each for each in cells if name in {found["name"] for found in FIELD.finditer(each.source)}]
    if len(holding) != 1:
        raise LookupError(f"{len(holding)} cells have a form field {name!r}")
    holding[0].source = FIELD.sub(
        lambda found: found[0].replace(found["value"], repr(value), 1) if found["name"] == name else found[0],
        holding[0].source,
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

    def queue(self, *names: str) -> list[dict[str, Any]]:
        """Send the cells of these names at once, as "Run all" does; return the replies."""
        sources = {cell.id: cell.source for cell in self._notebook.cells}

        async def replies() -> list[dict[str, Any]]:
            client = self._client.kc
            waiting = {client.execute(sources[name]): None for name in names}
            found: dict[str, dict[str, Any]] = {}
            while len(found) < len(waiting):
                message = await client.get_shell_msg(timeout=SECONDS)
                if message["parent_header"].get("msg_id") in waiting:
                    found[message["parent_header"]["msg_id"]] = message["content"]
            return [found[number] for number in waiting]

        return run_sync(replies)()

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
