"""Sources of pictures, a session's trained weights or an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.checkpoints.compressed_checkpoint import raw_files
from fastdb.checkpoints.finite_numbers import not_finite
from fastdb.checkpoints.progress import standing, standings
from fastdb.errors import ConfigError
from fastdb.inference.engine import Engine
from fastdb.inference.request import Request
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.resolve import ensure_base, ensure_folder, resolve_base
from fastdb.reporting import Progress
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE


@dataclass(frozen=True)
class Source:
    """A model that an engine can load."""

    name: str
    load: Callable[[], Engine]
    pictures: Path
    size: int
    """Training resolution in pixels."""
    guidance: float = 7.5
    """Classifier-free guidance scale of the session's samples."""

    def request(self, prompt: str, **wanted: Any) -> Request:
        """Return a request, by default with the source's own size and guidance.

        Raises:
            ConfigError: a value is out of bounds.
        """
        wanted = {name: value for name, value in wanted.items() if value is not None}
        return Request(prompt, **{"width": self.size, "height": self.size, "guidance": self.guidance, **wanted})


def open_source(
    source: Session | str,
    base: str | Path | None,
    root: str | Path | None,
    progress: Progress | None = None,
    step: int | None = None,
) -> Source:
    """Open a session or an exported file, and ensure its base model.

    Args:
        step: a checkpoint of a session's UNet stage; the newest by default.
        progress: called with downloaded and total bytes of the base model.

    Raises:
        ConfigError: there is no checkpoint of that step.
        SessionError, ModelError: the source cannot be used.
        StorageError: the disk is full.
    """
    if isinstance(source, str) and source.endswith((".safetensors", ".ckpt")):
        if step is not None:
            raise ConfigError("a file has no checkpoints", where=source, fix="Name a session, or leave the step out.")
        return _from_file(Path(source).expanduser().absolute(), base, progress)
    session = source if isinstance(source, Session) else Session.open(source, root)
    model = ensure_base(session, progress)
    unusable = not_finite(model.folder)
    stands = standing(session, unusable) if step is None else standings(session, [step], unusable)[0][0]
    where = f"{stands.last.stage} step {stands.last.step}" if stands.last else "untrained"
    return Source(
        f"{session.name} ({where})",
        lambda: Engine.from_base(model, trained=raw_files(stands.weights, model.folder)),
        session.path / "generated",
        session.config.resolution,
        session.config.samples.guidance,
    )


def _from_file(file: Path, base: str | Path | None, progress: Progress | None) -> Source:
    """Open a model file; an export in a session uses its base model, another file is converted to a folder."""
    size, guidance = 512, 7.5
    if (file.parent / FILE).is_file():
        session = Session.open(file.parent)
        base, size = base or ensure_base(session, progress).folder, session.config.resolution
        guidance = session.config.samples.guidance
    if base is None:
        model = open_base_model(ensure_folder(file, progress))
        return Source(file.name, lambda: Engine.from_base(model), file.parent / "generated", model.sample_size)
    folder = resolve_base(base, progress).folder
    pictures = file.parent / "generated"
    return Source(file.name, lambda: Engine.from_export(file, base=folder), pictures, size, guidance)
