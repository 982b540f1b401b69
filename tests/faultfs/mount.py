"""Mounts a drive that fails by script: `with Mount(tmp_path) as drive: drive.fail("write", nth=4, error="EIO")`."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.faultfs.faults import ANY, LOST, Fault
from tests.faultfs.upload import AtOnce, Uploads
from tests.requires import missing_for_fuse

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT = 30
"""Seconds for an answer of the drive's process; past that it is taken for dead."""


class Mount:
    """A drive mounted below `folder`, served by a process of its own; `path` is what programs see.

    `disk` is the VM's copy behind it and `cloud` what has been uploaded. Where nothing can be mounted the test is
    skipped with the reason.
    """

    def __init__(self, folder: Path, uploads: Uploads | None = None, *, generation: int = 1) -> None:
        self.folder, self.uploads, self.generation = folder, uploads or AtOnce(), generation
        self.path = folder / f"drive{generation}"
        self.disk = folder / f"disk{generation}"
        self.cloud = folder / "cloud"
        self.server: subprocess.Popen[str] | None = None
        self.heir: Mount | None = None

    def __enter__(self) -> Mount:
        if reason := missing_for_fuse():
            pytest.skip(reason)
        self.path.mkdir()
        self.cloud.mkdir(exist_ok=True)
        shutil.copytree(self.cloud, self.disk)
        ours, theirs = socket.socketpair()
        ours.settimeout(WAIT)
        given = [
            str(self.path),
            str(theirs.fileno()),
            str(self.disk),
            str(self.cloud),
            json.dumps(asdict(self.uploads)),
        ]
        with theirs, (self.folder / f"drive{self.generation}.log").open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tests.faultfs", *given],
                cwd=REPOSITORY,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.control, self.stream = ours, ours.makefile("rw")
        if not self.stream.readline():
            said = self.close()
            if said.startswith(("fuse:", "fusermount3:")):
                pytest.skip(f"nothing can be mounted here: {said.splitlines()[0]}")
            raise RuntimeError(f"the drive's process ended: {said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.heir is not None:
            self.heir.__exit__(kind, error, trace)
        said = self.close()
        if error is None and "Traceback" in said:
            raise RuntimeError(f"the drive itself is at fault: {said}")

    def close(self) -> str:
        """Unmount and end the process, whatever state they are in; what the process said."""
        said = self.folder / f"drive{self.generation}.log"
        if self.server is None:
            return said.read_text() if said.exists() else ""
        # Killed first: a request that nobody answers would hold up whoever waits for it.
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        self.server = None
        self.stream.close()
        self.control.close()
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, capture_output=True)
        return said.read_text()

    def order(self, do: str, **said: Any) -> Any:
        """Tell the drive's process to do something; its answer."""
        print(json.dumps({"do": do, **said}), file=self.stream, flush=True)
        return json.loads(self.stream.readline())

    def fail(
        self, kind: str = ANY, nth: int = 1, error: str = "EIO", *, persistent: bool = False, below: Path | None = None
    ) -> None:
        """The `nth` operation of a kind from now on fails; with `persistent` all later ones of that kind too.

        Errors go by their name in `errno`; `SHORT` is a write that takes half. With `below` only what happens to
        that path, or in it, counts.
        """
        self.order("fail", **asdict(Fault(kind, nth, error, persistent, self._within(below or self.path))))

    def _within(self, path: Path) -> str:
        """A path as the drive's process knows it."""
        return "/" if path == self.path else f"/{path.relative_to(self.path).as_posix()}"

    def disconnect(self) -> None:
        """Nothing answers until `heal`."""
        self.fail(ANY, 1, "ENOTCONN", persistent=True)

    def away(self, seconds: float) -> None:
        """Nothing answers for so long; then it does again by itself."""
        self.order("set", away_for=seconds)

    def unreadable(self, folder: Path, error: str = "EIO") -> None:
        """A folder is there and cannot be listed, nor any in it."""
        self.fail("readdir", 1, error, persistent=True, below=folder)

    def read_only(self) -> None:
        """Whatever would change something is refused, as on a mount that is read-only."""
        self.order("set", read_only=True)

    def full(self) -> None:
        """The account is full, and nothing says so: writes are taken, and what holds bytes is never uploaded."""
        self.order("full")

    def forget(self, path: Path) -> None:
        """The mount's listing has no such path any more, though the cloud has it, so it can be made a second time."""
        self.order("forget", path=self._within(path))

    def hear(self) -> None:
        """The listing is that of the cloud again: what was made a second time is now called `name (1).ext`."""
        self.order("hear")

    def lose_at(self, nth: int) -> None:
        """The machine is lost at the `nth` operation from now on: nothing answers, nothing more is uploaded."""
        self.fail(ANY, nth, LOST)

    def room(self, size: int) -> None:
        """The disk takes so many more bytes."""
        self.order("set", room=size)

    def stale(self, operations: int) -> None:
        """A listing shows a folder as it was so many operations ago, though not as before this call."""
        self.order("set", stale=operations)

    def heal(self) -> None:
        """Nothing fails any more; a lost machine stays lost."""
        self.order("heal")

    def counts(self) -> dict[str, int]:
        """The operations by kind since the start or the last `reset`."""
        counts: dict[str, int] = self.order("counts")
        return counts

    def log(self) -> list[tuple[str, str, str]]:
        """Those operations in their order: kind, path, and the error they were made to fail with."""
        return [(kind, path, error) for kind, path, error in self.order("log")]

    def reset(self) -> None:
        """Count and log from here."""
        self.order("reset")

    def settle(self) -> None:
        """Wait until everything is uploaded."""
        self.order("settle")

    def waiting(self) -> list[str]:
        """The paths that are not in the cloud as they are here."""
        waiting: list[str] = self.order("waiting")
        return waiting

    def lose(self) -> Mount:
        """Lose the machine with all that was not uploaded; the drive as another machine mounts it."""
        self.order("stop")
        self.close()
        shutil.rmtree(self.disk)
        self.heir = Mount(self.folder, self.uploads, generation=self.generation + 1)
        return self.heir.__enter__()
