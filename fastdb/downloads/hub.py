"""Downloads of repositories and single files from the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.downloads.download import check_disk_space, download, file_fault
from fastdb.downloads.http_client import RETRYABLE, Remote, Retries, RetryableError, safe_name
from fastdb.downloads.model_cache import locked, place, recall, remember
from fastdb.downloads.source import HubFile, HubRepository, hub_endpoint
from fastdb.downloads.tokens import Token, hub_token
from fastdb.errors import ModelError
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import TEMPORARY

INDEX = "model_index.json"

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of a pipeline that neither training nor inference uses."""

_EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml")
_WEIGHTS_NAME = re.compile(
    r"(diffusion_pytorch_model|model)(?P<half>\.fp16)?(?P<shard>-\d{5}-of-\d{5})?\.safetensors", re.ASCII
)
_CONFIGS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit.

    Each file has its size and, if it is large, its SHA-256.
    """

    pinned: HubRepository
    files: Mapping[str, tuple[int | None, str]]
    token: Token | None


def fetch_repository(source: HubRepository, only: str = "", progress: Progress | None = None) -> Path:
    """Download the needed files of a diffusers repository, unless cached.

    For a repository in the cache the Hub is asked only for the newest commit; without an answer the cache is used.

    Args:
        only: the pipeline class that the repository must contain, checked before its weights are downloaded.
        progress: called with received and total bytes.

    Returns:
        The repository's folder.

    Raises:
        ModelError: the repository is gated, missing, another pipeline, not in the diffusers layout, or only pickles.
        StorageError: the disk is full or cannot be written.
    """
    listing, pinned = _pin(source)
    folder = place(str(pinned))
    with locked(folder):
        if recall(folder) is None:
            _download_repository(folder, listing or list_repository(source), only, progress)
    _remember_commit(source, pinned)
    return folder


def fetch_file(source: HubFile, progress: Progress | None = None) -> Path:
    """Download a single file of a repository unless the cache has it.

    Raises:
        ModelError: the repository is gated or missing, has no such file, or the download failed.
        StorageError: the disk is full or cannot be written.
    """
    repository, suffix = HubRepository(source.name, source.revision), f"/{source.path}"
    listing, commit = _pin(repository, suffix)
    pinned = HubFile(source.name, source.path, commit.revision)
    folder = place(str(pinned))
    with locked(folder):
        known = recall(folder)
        if known is None:
            listing = listing or list_repository(source)
            if source.path not in listing.files:
                names = _single_files(listing)
                others = f"; it contains {', '.join(names)}" if names else ""
                raise ModelError(f"the repository has no such file{others}", where=source, fix="Check the spelling.")
            path = download(_remote(listing, source.path), folder, progress)
            remember(folder, str(pinned), {path.name: path})
        else:
            path = folder / next(iter(known.files))
    _remember_commit(repository, commit, suffix)
    return path


def _needed_files(names: Sequence[str], components: Sequence[str], shown: str) -> list[str]:
    """Return the paths of the files that the components need.

    These are configurations, tokenizers and a set of safetensors weights for each component. The fp16 variant is used
    only if there is no other.

    Args:
        names: the paths of all files in the repository.
        shown: the repository's name in the error.

    Raises:
        ModelError: a component has weights, but not as safetensors.
    """
    chosen: list[str] = []
    for component in components:
        inside = [name.split("/")[1] for name in names if re.fullmatch(rf"{re.escape(component)}/[^/]+", name)]
        weights = _choose_weights(inside)
        others = sorted(name for name in inside if name.endswith(_WEIGHTS))
        if not weights and others:
            raise ModelError(
                f"the {component} exists only as {others[0]}, which is not supported",
                where=shown,
                fix="Choose a repository with model.safetensors or diffusion_pytorch_model.safetensors.",
            )
        configs = [name for name in inside if name.endswith(_CONFIGS) and ".index." not in name]
        if weights and "-of-" in weights[0]:
            index = ".safetensors.index.fp16.json" if ".fp16" in weights[0] else ".safetensors.index.json"
            configs += [name for name in inside if name.endswith(index)]
        chosen += [f"{component}/{name}" for name in sorted([*configs, *weights])]
    return chosen


def _choose_weights(names: Sequence[str]) -> list[str]:
    """Return a component's safetensors files, preferably full precision, then unsharded."""
    sets: dict[tuple[bool, bool], list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS_NAME.fullmatch(name)
        if match:
            sets.setdefault((bool(match["half"]), bool(match["shard"])), []).append(name)
    return sets[min(sets)] if sets else []


def _pin(source: HubRepository, suffix: str = "") -> tuple[Listing | None, HubRepository]:
    """Return a repository at its current commit, and its listing if requested."""
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return None, source
    try:
        listing = list_repository(source)
    except ModelError:
        last = recall(place(f"{source}{suffix} newest"))
        if last is None or recall(place(f"{last.source}{suffix}")) is None:
            raise
        name, _, commit = last.source.partition("@")
        return None, HubRepository(name, commit)
    return listing, listing.pinned


def _remember_commit(source: HubRepository, pinned: HubRepository, suffix: str = "") -> None:
    """Record a repository's newest commit for use without the Hub."""
    if pinned != source:
        folder = place(f"{source}{suffix} newest")
        with locked(folder):
            remember(folder, str(pinned), {})


def _download_repository(folder: Path, listing: Listing, only: str, progress: Progress | None) -> None:
    shown = str(listing.pinned)
    index = _read_index(folder, listing)
    if only and index.get("_class_name") != only:
        raise ModelError(
            f"the repository contains a {index.get('_class_name')}, not a {only}",
            where=shown,
            fix=f"Choose a Stable Diffusion 1.x, such as {_EXAMPLE}.",
        )
    kinds = {name: kind for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and kind[1]}
    paths = _needed_files(list(listing.files), [name for name in kinds if name not in UNUSED], shown)
    sizes = {path: listing.files[path][0] or 0 for path in paths}
    total = sum(sizes.values())
    present = [folder / path for path in paths] + [folder / f"{path}{TEMPORARY}" for path in paths]
    check_disk_space(folder, total - sum(path.stat().st_size for path in present if path.is_file()), shown)
    before = 0
    for path in paths:

        def update(done: int, _: int, before: int = before) -> None:
            if progress:
                progress(before + done, total)

        download_file(folder, path, listing, update)
        update(sizes[path], 0)
        before += sizes[path]
    remember(folder, shown, {path: folder / path for path in (INDEX, *paths)})


def download_file(folder: Path, path: str, listing: Listing, progress: Progress | None) -> Path:
    """Download a file unless an intact copy of an earlier run exists."""
    target, (size, sha256) = folder / path, listing.files[path]
    if target.is_file() and not file_fault(target, sha256=sha256, size=size):
        return target
    return download(_remote(listing, path), target.parent, progress)


def _remote(listing: Listing, path: str) -> Remote:
    from huggingface_hub import hf_hub_url

    name, revision = listing.pinned.name, listing.pinned.revision
    size, sha256 = listing.files[path]
    return Remote(
        url=hf_hub_url(name, path, revision=revision, endpoint=hub_endpoint()),
        shown=str(HubFile(name, path, revision)),
        token=listing.token,
        sha256=sha256,
        size=size,
        name=path.rpartition("/")[2],
        gate=_gate(name),
    )


def _read_index(folder: Path, listing: Listing) -> dict[str, Any]:
    """Download and parse `model_index.json`."""
    name = listing.pinned.name
    if INDEX not in listing.files:
        if singles := _single_files(listing):
            raise ModelError(
                f"the repository has no {INDEX}, only single files: {', '.join(singles)}",
                where=name,
                fix=f"Name a file, such as {name}/{singles[0]}, or choose a repository in the diffusers layout.",
            )
        raise ModelError(
            f"the repository has no {INDEX}, so it is not a model in the diffusers layout",
            where=name,
            fix=f"Choose a repository that has it, such as {_EXAMPLE}.",
        )
    try:
        index = json.loads(download_file(folder, INDEX, listing, None).read_text(encoding="utf-8"))
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise ModelError(f"{INDEX} could not be read", where=listing.pinned, fix="Choose another source.")
    return index


def _single_files(listing: Listing) -> list[str]:
    names = (name for name in listing.files if name.endswith((".safetensors", ".ckpt")) and "/" not in name)
    return sorted(names)[:5]


def _gate(name: str) -> str:
    return (
        f"Sign in on huggingface.co, accept the license on https://huggingface.co/{name}, and set a token: HF_TOKEN "
        "(in Colab, a secret of that name), `hf auth login`, or token.txt."
    )


def list_repository(source: HubRepository | HubFile, tries: int | None = None) -> Listing:
    """Request the list of files in a repository; `tries` limits the attempts.

    Raises:
        ModelError: the repository is gated or missing, or the Hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = hub_token(hub_endpoint())
    api = HfApi(endpoint=hub_endpoint(), token=token.value if token else False)
    retries = Retries(str(source), tries)
    while True:
        try:
            info = api.model_info(source.name, revision=source.revision or None, files_metadata=True, timeout=30)
            break
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in RETRYABLE:
                raise _listing_error(source, error, token) from None
            retries.wait(RetryableError(f"the Hub answered {status}"))
        except httpx.RequestError as error:
            retries.wait(error)
        except OfflineModeIsEnabled:
            raise ModelError(
                "it is not on this machine, and HF_HUB_OFFLINE disables downloads",
                where=source,
                fix="Unset HF_HUB_OFFLINE, or give the path of a folder.",
            ) from None
        except (HFValidationError, ValueError, TypeError, KeyError):
            raise ModelError(
                "the Hub does not accept this name, or its answer cannot be read",
                where=source,
                fix="Check the spelling.",
            ) from None
    files = {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else "")
        for file in info.siblings or ()
        if all(part and part == safe_name(part) for part in file.rfilename.replace("%", "_").split("/"))
    }
    return Listing(HubRepository(source.name, str(info.sha)), files, token)


def _listing_error(source: HubRepository | HubFile, error: Any, token: Token | None) -> ModelError:
    """Return the error for an HTTP error of the Hub.

    The Hub's own text is long and contains addresses.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        what = "the account of this token has not accepted the license" if token else "the license must be accepted"
        return ModelError(f"{what} ({status})", where=source, fix=_gate(source.name))
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"the repository has no revision {source.revision!r}",
            where=source,
            fix="Omit the revision to use the newest, or check the spelling.",
        )
    if status == 401 and token and not isinstance(error, RepositoryNotFoundError):
        return ModelError(f"the Hub rejected the token ({status})", where=source, fix=_gate(source.name))
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            "there is no such local folder, and no such repository on the Hub unless it is private",
            where=source,
            fix="Check the spelling; for a private repository set HF_TOKEN or run `hf auth login`.",
        )
    return ModelError(f"the Hub answered {status}", where=source, fix="Try again later, or choose another source.")
