"""Programs and rights that some tests need, each with the reason for skipping where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

requires_fuse = pytest.mark.usefixtures("fuse")
"""For tests that mount a drive; entering a `Mount` of `tests.faultfs` skips its test as well."""


@cache
def missing_for_fuse() -> str:
    """Return why no drive can be mounted on this machine, or an empty string."""
    try:
        import mfusepy  # noqa: F401
    except ImportError:
        return "needs mfusepy"
    except OSError:  # its import looks for libfuse
        return "needs libfuse (Debian's package fuse3)"
    if shutil.which("fusermount3") is None:
        return "needs fusermount3 (Debian's package fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse, and the right to use it"
    return ""


@cache
def faketime_library() -> str:
    """Return the library that fakes clocks when it is preloaded, from Debian's package faketime, or an empty string."""
    if shutil.which("faketime") is None:
        return ""
    output = subprocess.run(["faketime", "-f", "+0", "env"], capture_output=True, text=True, check=False).stdout
    lines = [line.partition("=") for line in output.splitlines()]
    return next((value for name, _, value in lines if name == "LD_PRELOAD"), "")
