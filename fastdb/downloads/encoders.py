"""Models that measure pictures, downloaded from the Hub into the model cache once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastdb.downloads.download import check_disk_space
from fastdb.downloads.hub import download_file, list_repository
from fastdb.downloads.model_cache import locked, note_use, place, recall, remember
from fastdb.downloads.source import HubRepository
from fastdb.errors import ModelError
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import TEMPORARY

WEIGHTS = "model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_FILES = ("config.json", "preprocessor_config.json", *_TOKENIZER, WEIGHTS)


def cached_encoder(names: Sequence[str]) -> Path | None:
    """Return the folder of the first of several models that is on this machine, or None; no network is tried."""
    for name in names:
        folder = _place(name)
        if recall(folder) is not None:
            note_use(folder)
            return folder
        if (of_hub := _in_cache_of_hub(name)) is not None:
            return of_hub
    return None


def fetch_encoder(names: Sequence[str], announce: Callable[[str, int], None], progress: Progress | None = None) -> Path:
    """Return the folder of one of several models, downloaded unless one is in the cache.

    Args:
        names: repositories on the Hub in order of preference. One without safetensors is skipped.
        announce: called with the repository and the bytes to download, before the first of them.

    Raises:
        ModelError: the Hub cannot be reached or refuses all of them.
        StorageError: the disk is full or cannot be written.
    """
    if (present := cached_encoder(names)) is not None:
        return present
    errors: list[ModelError] = []
    for name in names:
        try:
            return _fetch(name, announce, progress)
        except ModelError as error:
            errors.append(error)
    raise errors[0]


def _fetch(name: str, announce: Callable[[str, int], None], progress: Progress | None) -> Path:
    listing = list_repository(HubRepository(name), tries=2)
    paths = [path for path in _FILES if path in listing.files]
    if WEIGHTS not in paths:
        raise ModelError(f"the repository has no {WEIGHTS}", where=name, fix="Name another model.")
    folder, sizes = _place(name), {path: listing.files[path][0] or 0 for path in paths}
    total, before = sum(sizes.values()), 0
    announce(name, total)
    with locked(folder):
        here = [folder / path for path in paths] + [folder / f"{path}{TEMPORARY}" for path in paths]
        check_disk_space(folder, total - sum(path.stat().st_size for path in here if path.is_file()), name)
        for path in paths:

            def update(done: int, _: int, before: int = before) -> None:
                if progress:
                    progress(before + done, total)

            download_file(folder, path, listing, update)
            before += sizes[path]
        remember(folder, str(listing.pinned), {path: folder / path for path in paths})
    return folder


def _in_cache_of_hub(name: str) -> Path | None:
    """Return the folder of a model that huggingface_hub, and with it transformers, has downloaded; None without it."""
    from huggingface_hub import try_to_load_from_cache

    weights = try_to_load_from_cache(name, WEIGHTS)
    whole = isinstance(weights, str) and all((Path(weights).parent / file).is_file() for file in _FILES[:2])
    return Path(weights).parent if isinstance(weights, str) and whole else None


def _place(name: str) -> Path:
    return place(f"{name} to measure pictures")
