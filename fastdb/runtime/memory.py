"""How much memory there is to be had on this machine."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Where a container's own limit is told (cgroup v2)."""


def memory_to_be_had() -> int | None:
    """Bytes this process may still take without the machine, or its container, running out; None where nobody tells."""
    told = [count for count in (_available(), _left_in_container()) if count is not None]
    return min(told, default=None)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left_in_container() -> int | None:
    """What the limit leaves, what the kernel only keeps of files counted as free: it gives that back when asked."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        kept = (CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():
        return None
    files = sum(int(kept[kept.index(name) + 1]) for name in ("inactive_file", "active_file") if name in kept)
    return max(0, int(limit) - used + files)
