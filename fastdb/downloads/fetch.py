"""Download of a base model from any supported source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdb.downloads.civitai_and_drive import remote_of
from fastdb.downloads.download import download
from fastdb.downloads.hub import fetch_file, fetch_repository
from fastdb.downloads.model_cache import locked, place, recall, remember
from fastdb.downloads.source import (
    SUPPORTED,
    CivitaiFile,
    DriveFile,
    HubFile,
    HubRepository,
    LocalPath,
    Source,
    WebFile,
    parse,
)
from fastdb.errors import ModelError
from fastdb.reporting import Progress


def fetch(
    named: str | Path | Source,
    *,
    mirrors: Sequence[str | Source] = (),
    only: str = "",
    progress: Progress | None = None,
) -> Path:
    """Download a model unless it is on this machine.

    Args:
        named: a source as typed (see `parse`) or parsed.
        mirrors: other sources of the same model, tried in order.
        only: the pipeline class that a repository must contain, such as StableDiffusionPipeline.
        progress: called with received and total bytes; a total of 0 is unknown.

    Returns:
        A file, or a folder in the diffusers layout. A local path is returned unchanged.

    Raises:
        ModelError: all sources failed, each with its reason.
        StorageError: the disk is full or cannot be written.
    """
    errors: list[ModelError] = []
    for name in (named, *mirrors):
        try:
            source = parse(name) if isinstance(name, str | Path) else name
            if isinstance(source, LocalPath):
                if not source.path.exists():
                    raise ModelError("there is no such file or folder", where=source, fix=SUPPORTED)
                return source.path
            if isinstance(source, HubRepository):
                return fetch_repository(source, only, progress)
            if isinstance(source, HubFile):
                return fetch_file(source, progress)
            return _fetch_link(source, progress)
        except ModelError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    reasons = "; ".join(error.problem for error in errors)
    raise ModelError(f"all {len(errors)} sources failed ({reasons})", fix=errors[0].fix)


def _fetch_link(source: CivitaiFile | DriveFile | WebFile, progress: Progress | None) -> Path:
    folder = place(str(source), source.url if isinstance(source, WebFile) else "")
    with locked(folder):
        known = recall(folder)
        if known is None:
            path = download(remote_of(source), folder, progress)
            remember(folder, str(source), {path.name: path})
            return path
    return folder / next(iter(known.files))
