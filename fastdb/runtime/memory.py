"""Available memory of this machine, and the C library's treatment of freed memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Limits of a container (cgroup v2)."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt` in malloc.h."""


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


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system.

    It returns each freed block of more than 32 MB, and the kernel zeroes every page that it hands out again. For one
    thread that takes 0.45 s per GB, and copying 0.1 s: the gradients and activations of a step are such blocks.
    """
    _call_glibc("mallopt", _MMAP_MAX, 0)
    _call_glibc("mallopt", _TRIM_THRESHOLD, -1)


def return_freed_blocks() -> None:
    """Let glibc return each freed block of 128 kB or more to the system at once, for settings that save memory.

    In its heap the gaps between blocks of other sizes took 1.8 times the activations of a training with gradient
    checkpointing. Fresh pages cost time instead, see `keep_freed_memory`.
    """
    _call_glibc("mallopt", _MMAP_MAX, 1 << 16)
    # Also ends glibc's own adaptation of the limit.
    _call_glibc("mallopt", _MMAP_THRESHOLD, 128 << 10)
    _call_glibc("mallopt", _TRIM_THRESHOLD, 128 << 10)


def return_freed_memory() -> None:
    """Return the memory that this process has freed to the system."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(name: str, *arguments: int) -> None:
    """Call a function of the C library, which other libraries than glibc lack."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), name):
        getattr(library, name)(*arguments)
