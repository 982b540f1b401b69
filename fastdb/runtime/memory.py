"""Available memory of this machine."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Limits of a container (cgroup v2)."""


def memory_to_be_had() -> int | None:
    """Return the bytes available to this process on the machine or in its container; None if unknown."""
    counts = [count for count in (_available(), _left_in_container()) if count is not None]
    return min(counts, default=None)


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
    """Return the bytes below the container's limit; the page cache counts as free, because the kernel reclaims it."""
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
