"""Repositories on the Hub, and single files in them, kept on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastdb.downloads.download import Progress, check_room, download
from fastdb.downloads.hub_listing import Listing, list_repository
from fastdb.downloads.hub_selection import INDEX, LEFT_OUT, needed
from fastdb.downloads.model_cache import locked, place, recall, remember
from fastdb.downloads.source import HubFile, HubRepository
from fastdb.downloads.verify import fault_of
from fastdb.errors import ModelError
from fastdb.storage.atomic_write import TEMPORARY


def fetch_repository(
    source: HubRepository, *, half: bool = False, only: str = "", progress: Progress | None = None
) -> Path:
    """The folder of a diffusers repository on this machine, with the files that are needed and no others.

    `half` takes weights in half precision where the repository has both; `only` is the one pipeline that will do. Of a
    repository that was fetched before the Hub is asked for the newest commit only; where it cannot tell, what is here
    serves.

    Raises:
        ModelError: it is closed, not there, another pipeline, no diffusers model, or has its weights only as pickles.
        StorageError: the disk is full or cannot be written.
    """
    variant = "+fp16" if half else ""
    listing, pinned = _pinned(source, variant)
    folder = place(f"{pinned}{variant}")
    with locked(folder):
        if recall(folder) is None:
            _fill(folder, listing or list_repository(source), half, only, progress)
    _note(source, pinned, variant)
    return folder


def fetch_file(source: HubFile, progress: Progress | None = None) -> Path:
    """A single file of a repository on this machine.

    Raises:
        ModelError: it is closed, not there, or did not come whole.
        StorageError: the disk is full or cannot be written.
    """
    listing, commit = _pinned(HubRepository(source.name, source.revision), f"/{source.path}")
    pinned = HubFile(source.name, source.path, commit.revision)
    folder = place(str(pinned))
    with locked(folder):
        known = recall(folder)
        if known is None:
            listing = listing or list_repository(source)
            if source.path not in listing.entries:
                there = f"; there is {', '.join(_singles(listing))}" if _singles(listing) else ""
                raise ModelError(f"the repository has no such file{there}", where=source, fix="Check the spelling.")
            path = download(listing.remote(source.path), folder, progress)
            remember(folder, str(pinned), {path.name: path})
        else:
            path = folder / next(iter(known.files))
    _note(HubRepository(source.name, source.revision), commit, f"/{source.path}")
    return path


def _pinned(source: HubRepository, variant: str) -> tuple[Listing | None, HubRepository]:
    """The commit that a repository is at, and the listing where the Hub was asked for it."""
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return None, source
    try:
        listing = list_repository(source)
    except ModelError:
        note = recall(place(f"{source}{variant} newest"))
        if note is None or recall(place(f"{note.source}{variant}")) is None:
            raise
        name, _, commit = note.source.partition("@")
        return None, HubRepository(name, commit)
    return listing, listing.pinned


def _note(source: HubRepository, pinned: HubRepository, variant: str) -> None:
    """Remember what a name without a commit meant last, for when the Hub cannot be asked."""
    if pinned != source:
        folder = place(f"{source}{variant} newest")
        with locked(folder):
            remember(folder, str(pinned), {})


def _fill(folder: Path, listing: Listing, half: bool, only: str, progress: Progress | None) -> None:
    """Download what is needed and not there yet."""
    shown = str(listing.pinned)
    index = _index(folder, listing)
    if only and index.get("_class_name") != only:
        raise ModelError(
            f"is a {index.get('_class_name')}, not a {only}",
            where=shown,
            fix="Choose a Stable Diffusion 1.x, such as stable-diffusion-v1-5/stable-diffusion-v1-5.",
        )
    kinds = {name: kind for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and kind[1]}
    chosen = needed(list(listing.entries), [name for name in kinds if name not in LEFT_OUT], half, shown)
    sizes = {path: listing.entries[path].size or 0 for path in chosen}
    here = [folder / path for path in chosen] + [folder / f"{path}{TEMPORARY}" for path in chosen]
    check_room(folder, sum(sizes.values()) - sum(path.stat().st_size for path in here if path.is_file()), shown)
    before = 0
    for path in chosen:

        def told(done: int, _: int, before: int = before) -> None:
            if progress:
                progress(before + done, sum(sizes.values()))

        _got(folder, path, listing, told)
        told(sizes[path], 0)
        before += sizes[path]
    remember(folder, shown, {path: folder / path for path in (INDEX, *chosen)})


def _got(folder: Path, path: str, listing: Listing, progress: Progress | None) -> Path:
    """One file in its place: the one an earlier run left, if it is right, or downloaded now."""
    target, entry = folder / path, listing.entries[path]
    if target.is_file() and not fault_of(target, sha256=entry.sha256, size=entry.size):
        return target
    return download(listing.remote(path), target.parent, progress)


def _index(folder: Path, listing: Listing) -> dict[str, Any]:
    """What `model_index.json` says: the pipeline, and a class for each of its components."""
    if INDEX not in listing.entries:
        raise _no_folder(listing)
    try:
        said = json.loads(_got(folder, INDEX, listing, None).read_text(encoding="utf-8"))
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ModelError(f"its {INDEX} cannot be read", where=listing.pinned, fix="Choose another source.")
    return said


def _no_folder(listing: Listing) -> ModelError:
    name, singles = listing.pinned.name, _singles(listing)
    if singles:
        return ModelError(
            f"has no {INDEX}, but single files: {', '.join(singles)}",
            where=name,
            fix=f"Name one, such as {name}/{singles[0]}, or choose a repository in the diffusers layout.",
        )
    return ModelError(
        f"has no {INDEX}: it is no base model in the diffusers layout",
        where=name,
        fix="Choose a repository that has one, such as stable-diffusion-v1-5/stable-diffusion-v1-5.",
    )


def _singles(listing: Listing) -> list[str]:
    names = (name for name in listing.entries if name.endswith((".safetensors", ".ckpt")) and "/" not in name)
    return sorted(names)[:5]
