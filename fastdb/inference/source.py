"""What to generate from: a session's weights as trained so far, or an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.progress import standing
from fastdb.errors import ModelError
from fastdb.inference.engine import Engine, Request
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.resolve import ensure_base, ensure_folder, resolve_base
from fastdb.reporting import Progress
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE


@dataclass(frozen=True)
class Source:
    """Something an engine can be loaded from; `size` is what it was trained at, in pixels."""

    name: str
    load: Callable[[], Engine]
    pictures: Path
    size: int

    def request(self, prompt: str, **wanted: Any) -> Request:
        """A request whose size, where none is wanted, is the source's own.

        Raises:
            ConfigError: a value is out of bounds.
        """
        wanted = {name: value for name, value in wanted.items() if value is not None}
        return Request(prompt, **{"width": self.size, "height": self.size, **wanted})


def open_source(
    source: Session | str,
    base: str | Path | None,
    root: str | Path | None,
    progress: Progress | None = None,
) -> Source:
    """Open a session by name, folder or itself, or an exported file; ensure its base model.

    Args:
        progress: called with downloaded and total bytes of the base model.

    Raises:
        SessionError, ModelError: it cannot be used.
        StorageError: the disk is full.
    """
    if isinstance(source, str) and source.endswith((".safetensors", ".ckpt")):
        return _from_file(Path(source).expanduser().absolute(), base, progress)
    session = source if isinstance(source, Session) else Session.open(source, root)
    stands = standing(session)
    model = ensure_base(session, progress)
    where = f"{stands.last.stage} step {stands.last.step}" if stands.last else "untrained"
    return Source(
        f"{session.name} ({where})",
        lambda: Engine.from_base(model, trained=raw_files(stands.weights, model.folder)),
        session.path / "generated",
        session.config.resolution,
    )


def _from_file(file: Path, base: str | Path | None, progress: Progress | None) -> Source:
    """A model file: an exported one knows its base model by the session it lies in; of another a folder is made."""
    if not file.is_file():
        raise ModelError("there is no such file", where=file, fix="Export one with: fastdb export SESSION")
    size = 512
    if (file.parent / FILE).is_file():
        session = Session.open(file.parent)
        base, size = base or ensure_base(session, progress).folder, session.config.resolution
    if base is None:
        model = open_base_model(ensure_folder(file, progress))
        return Source(file.name, lambda: Engine.from_base(model), file.parent / "generated", model.sample_size)
    folder = resolve_base(base, progress).folder
    return Source(file.name, lambda: Engine.from_export(file, base=folder), file.parent / "generated", size)
