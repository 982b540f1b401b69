"""The form a checkpoint has in the session's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastdb.sessions.checkpoints import STATE, Checkpoint
from fastdb.storage.durable import flush
from fastdb.storage.manifest import MANIFEST
from fastdb.training.pace import Pace

BLOCK = 1 << 22


def fill(local: Checkpoint, hidden: Path, base: Path, pace: Pace) -> dict[str, str]:
    """Write what `local` holds beside its state into the folder `hidden`; the SHA-256 of what was meant, by name.

    Raises:
        OSError: a disk is full, failing or gone.
    """
    meant = {}
    for path in sorted(local.path.iterdir()):
        if path.name in (STATE, MANIFEST):
            continue
        digest = hashlib.sha256()
        with path.open("rb") as source, (hidden / path.name).open("wb") as target:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
                pace(len(block))
        flush(hidden / path.name)
        meant[path.name] = digest.hexdigest()
    return meant


def is_same(local: Checkpoint, published: Checkpoint) -> bool:
    """Whether the two say that they hold the same; nothing but their manifests is read."""
    return _said(local) == _said(published) is not None


def _said(checkpoint: Checkpoint) -> object:
    try:
        return json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
