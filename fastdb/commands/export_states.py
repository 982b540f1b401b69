"""Exported files of a session, with the training that each contains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.progress import STEPS, progress_of, steps_text
from fastdb.errors import FastDBError
from fastdb.formats.reader import open_tensors
from fastdb.sessions.session import Session


@dataclass(frozen=True)
class ExportState:
    """An exported file of a session."""

    file: str
    trained: str
    """Steps of each stage that it contains, such as `text_encoder 350, unet 1500`; empty if not recorded."""
    stale: bool
    """Training went on since it was made from the newest checkpoint."""


def export_states(session: Session) -> Iterator[ExportState]:
    """Yield a session's exports with the training that each contains, by its own header first."""
    recorded = {export.file: export.trained for export in session.record.exports}
    current = steps_text(progress_of(session))
    for path in session.exports:
        trained = _steps_in(path) or recorded.get(path.name, "")
        newest = path.stem in (session.name, session.record.name)
        yield ExportState(path.name, trained, bool(trained) and newest and trained != current)


def _steps_in(export: Path) -> str:
    """Return the steps of each stage that the header of an export names; empty for a `.ckpt`, which has none."""
    if export.suffix != ".safetensors":
        return ""
    try:
        return open_tensors(export).metadata.get(STEPS, "")
    except FastDBError:
        return ""
