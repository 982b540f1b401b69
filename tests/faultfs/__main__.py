"""The process that serves a mounted drive: `python -m tests.faultfs` with what `mount.py` gives it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mfusepy import FUSE

from tests.faultfs.faults import Fault
from tests.faultfs.filesystem import Drive
from tests.faultfs.upload import Uploads


class Served(Drive):
    """A drive that answers its owner over a socket and goes when its owner does."""

    def __init__(self, mountpoint: str, control: int, disk: Path, cloud: Path, uploads: Uploads) -> None:
        super().__init__(disk, cloud, uploads)
        self.mountpoint = mountpoint
        self.control = socket.socket(fileno=control)

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """The kernel has mounted it."""
        threading.Thread(target=self.answer, daemon=True).start()

    def answer(self) -> None:
        """Do what the owner says until it hangs up, also by dying; then unmount."""
        with self.control, self.control.makefile("rw") as stream:
            print("{}", file=stream, flush=True)
            for line in stream:
                with self.turn:
                    answer = self.obey(**json.loads(line))
                print(json.dumps(answer), file=stream, flush=True)
        subprocess.run(["fusermount3", "-u", "-z", self.mountpoint], check=False, capture_output=True)

    def obey(self, do: str, **said: Any) -> Any:
        """Carry out one order."""
        if do == "fail":
            self.faults.script.append(Fault(**said))
        elif do == "set":
            for name, value in said.items():
                setattr(self.faults, name, value)
        elif do == "heal":
            self.faults.heal()
        elif do == "reset":
            self.faults.reset()
        elif do == "counts":
            return dict(self.faults.counts)
        elif do == "log":
            return self.faults.log
        elif do == "settle":
            self.uploader.settle()
        elif do in ("forget", "hear"):
            getattr(self.uploader, do)(**said)
        elif do == "full":
            self.uploader.full = True
        elif do == "waiting":
            return [*self.uploader.waiting, *self.uploader.open]
        elif do == "stop":
            self.lost = self.uploader.stopped = True
        else:
            raise ValueError(do)
        return None


def main(mountpoint: str, control: str, disk: str, cloud: str, uploads: str) -> None:
    """Serve until unmounted."""
    drive = Served(mountpoint, int(control), Path(disk), Path(cloud), Uploads(**json.loads(uploads)))
    # One request at a time, and nothing remembered by the kernel: the same work is the same row of operations.
    FUSE(
        drive,
        mountpoint,
        foreground=True,
        nothreads=True,
        direct_io=True,
        hard_remove=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname="faultfs",
        subtype="faultfs",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
