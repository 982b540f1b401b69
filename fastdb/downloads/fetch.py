"""`fetch`: whatever a person has named, as a file or folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdb.downloads.civitai_and_drive import remote_of
from fastdb.downloads.download import Progress, download, together
from fastdb.downloads.hub_download import fetch_file, fetch_repository
from fastdb.downloads.model_cache import locked, place, recall, remember
from fastdb.downloads.source import (
    WAYS,
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


def fetch(
    named: str | Path | Source,
    *,
    mirrors: Sequence[str | Source] = (),
    half: bool = False,
    only: str = "",
    sha256: str = "",
    size: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring a model onto this machine, unless it is here already.

    Args:
        named: what a person has named (see `parse`), or what that was understood as.
        mirrors: where else the same model is; tried in order when `named` does not have it.
        half: weights in half precision are enough, where a repository has both.
        only: the pipeline that a repository has to hold, such as StableDiffusionPipeline; looked at before its weights.
        sha256, size: what the file has to have, where that is known; not for repositories.
        progress: called with the bytes that are there and those of the whole, 0 where nobody knows.

    Returns:
        A file, or a folder in the diffusers layout. A path is given back as it is.

    Raises:
        ModelError: it cannot be had from anywhere; each source with its reason.
        StorageError: the disk is full or cannot be written.
    """
    faults: list[ModelError] = []
    for one in (named, *mirrors):
        try:
            source = parse(one) if isinstance(one, str | Path) else one
            if isinstance(source, LocalPath):
                return _there(source)
            if isinstance(source, HubRepository):
                return fetch_repository(source, half=half, only=only, progress=progress)
            if isinstance(source, HubFile):
                return fetch_file(source, progress)
            return _fetch_file(source, sha256, size, progress)
        except ModelError as error:
            faults.append(error)
    raise together(faults)


def _there(source: LocalPath) -> Path:
    if not source.path.exists():
        raise ModelError("there is no such file or folder", where=source, fix=WAYS)
    return source.path


def _fetch_file(
    source: CivitaiFile | DriveFile | WebFile, sha256: str, size: int | None, progress: Progress | None
) -> Path:
    """A file behind a link, from the cache where it has come before."""
    folder = place(str(source), source.url if isinstance(source, WebFile) else "")
    with locked(folder):
        known = recall(folder)
        if known is None:
            path = download(remote_of(source, sha256=sha256, size=size), folder, progress)
            remember(folder, str(source), {path.name: path})
            return path
    return folder / next(iter(known.files))
