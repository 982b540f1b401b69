"""Which machine this is, in words that mean something on a disk that others see too; its processes and its clocks."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from fastdb.runtime.paths import cache_folder

_NUMBER = "this-machine"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


def wall() -> datetime:
    """The time of day in UTC, as this machine's clock has it: it may be wrong by years, and it may jump."""
    return datetime.now(UTC)


def ticking() -> float:
    """Seconds since some moment, by a clock that nobody sets; where the system has one that counts sleep too, that."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) if boot is not None else time.monotonic()


def machine_number() -> str:
    """A number this machine's cache was given once, 32 hex digits.

    Where the cache lies on a shared disk, several machines have one number; `host_name` and `boot` tell them apart.

    Raises:
        OSError: the cache cannot be written.
    """
    path = cache_folder() / "work" / _NUMBER
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(50):
        try:
            with open(path, "x", encoding="ascii") as stream:
                stream.write(uuid.uuid4().hex)
        except FileExistsError:
            number = path.read_bytes()[:33].decode("ascii", "replace")
            if len(number) == 32 and number.isalnum():
                return number
            # Another process is about to write it, or was killed before it did.
            time.sleep(0.02)
    path.write_text(fresh := uuid.uuid4().hex, encoding="ascii")
    return fresh


def host_name() -> str:
    """The name by which this machine goes."""
    return socket.gethostname() or "a machine without a name"


def user_name() -> str:
    """Who runs this, as the system has it; on Colab everybody is root."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def boot() -> str:
    """What changes when this machine starts anew, and differs between containers: where numbers of processes count."""
    said = []
    for ask in (lambda: _BOOT.read_text(encoding="ascii").strip(), lambda: os.readlink(_PROCESSES)):
        try:
            said.append(ask())
        except OSError:
            continue  # Not Linux: the host's name has to do.
    return " ".join(said)


def began(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks; 0 where the system does not tell, None for one that
    is not there or has ended and only waits for its parent to look."""
    try:
        # The name in brackets may hold anything; what follows the last bracket are numbers, the state first.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0
    return 0
