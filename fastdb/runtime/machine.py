"""Identity, processes and clocks of this machine."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fastdb.runtime.paths import cache_folder

_NUMBER = "this-machine"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


def wall() -> datetime:
    """Return the time in UTC by this machine's clock, which may be wrong by years and may jump."""
    return datetime.now(UTC)


def ticking() -> float:
    """Return seconds of a monotonic clock, which includes sleep where the system has such a clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) if boot is not None else time.monotonic()


def machine_number() -> str:
    """Return the number of this machine's cache, 32 hex digits, which is created once.

    Machines with a cache on a shared disk have the same number; `host_name` and `boot` distinguish them.

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
            # Another process is writing it, or was killed before it did.
            time.sleep(0.02)
    path.write_text(fresh := uuid.uuid4().hex, encoding="ascii")
    return fresh


def host_name() -> str:
    """Return the host name."""
    return socket.gethostname() or "unknown host"


def user_name() -> str:
    """Return the user name; on Colab every user is root."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"


def boot() -> str:
    """Return an identifier of this boot and container, within which process IDs are unique."""
    parts = []
    # Elsewhere than on Linux the host name has to suffice.
    with suppress(OSError):
        parts.append(_BOOT.read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink(_PROCESSES))
    return " ".join(parts)


def began(pid: int) -> int | None:
    """Return when a process of this machine began, in the kernel's ticks.

    The result is 0 if the system does not report it, and None if the process has ended, zombies included.
    """
    try:
        # The name in brackets may contain brackets and spaces; the state follows the last bracket.
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
