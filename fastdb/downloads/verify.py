"""Whether a file that has come is the whole file, and the right one, read back from the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastdb.storage.atomic_write import explained

_LONGEST_HEADER = 100_000_000


def fault_of(path: Path, *, sha256: str = "", size: int | None = None, name: str = "") -> str:
    """What is wrong with a file that should have this hash and size, as a clause; empty where nothing is.

    A safetensors file says its own length too, by which one that was cut short is known without a hash.

    Raises:
        StorageError: it cannot be read.
    """
    with explained(path):
        found = path.stat().st_size
        if size is not None and found != size:
            return f"has {found} bytes, and {size} were announced"
        if sha256:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return "" if digest == sha256.lower() else f"has the SHA-256 {digest}, and {sha256.lower()} was expected"
        expected = _announced(path) if (name or path.name).endswith(".safetensors") else None
    if expected is not None and found != expected:
        return f"has {found} bytes, and its own header speaks of {expected}"
    return ""


def _announced(path: Path) -> int | None:
    """The length that a safetensors file gives itself; None where it has no header that can be read."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            return None
        text = stream.read(length)
    if len(text) < length:
        return 8 + length
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
