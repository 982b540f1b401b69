"""Small model files: in the wheel, in the cache or on Google Drive, or downloaded once.

`wheels/models.lock` lists them with sizes, checksums, licences and addresses. The wheel contains those that were
available when it was built.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fastdb.errors import ModelError
from fastdb.runtime import paths
from fastdb.storage.atomic_write import make_folder, write_bytes

YUNET = "yunet_n_640_640.onnx"
"""Face detector."""
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""Merges of CLIP's byte pair encoding, which its vocabulary follows from."""

_LOCK = paths.WHEELS / "models.lock"
_BUNDLED = paths.WHEELS / "models"


@dataclass(frozen=True)
class SmallModel:
    """A line of `models.lock`."""

    name: str
    size: int
    sha256: str
    licence: str
    address: str


@cache
def small_models() -> dict[str, SmallModel]:
    """Return the models of `models.lock` by name."""
    lines = [line.split() for line in _LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    models = [SmallModel(name, int(size), sha256, licence, url) for name, size, sha256, licence, url in lines]
    return {model.name: model for model in models}


def folders() -> list[Path]:
    """Return the folders that may contain small models, in the order of search."""
    drive = paths.mounted_drive()
    kept = [drive / paths.FOLDER / "models"] if drive else []
    return [_BUNDLED, paths.cache_folder(), *kept]


def find(name: str) -> Path | None:
    """Return the file of a small model on this machine, or None."""
    return next((folder / name for folder in folders() if not fault(folder / name, name)), None)


def fault(file: Path, name: str) -> str:
    """Return why a file is not the model of this name, or an empty string."""
    try:
        state = file.stat()
    except OSError:
        return "does not exist"
    return _content_fault(file, name, state.st_size, state.st_mtime_ns)


def fetch(name: str, timeout: float = 30.0) -> Path:
    """Return the file of a small model, downloaded to Drive, or to the cache without Drive, unless it is present.

    Args:
        name: a name in `models.lock`.
        timeout: seconds without an answer after which the download fails.

    Raises:
        ModelError: the server cannot be reached, or returns another file.
        StorageError: the folder cannot be written.
    """
    present = find(name)
    if present is not None:
        return present
    model = small_models()[name]
    try:
        with urllib.request.urlopen(model.address, timeout=timeout) as answer:
            data = answer.read(model.size + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"{name} could not be downloaded ({reason})", where=model.address, fix="Try again later."
        ) from error
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise ModelError(
            f"the downloaded file does not match the expected checksum ({len(data):,} bytes)",
            where=model.address,
            fix="Try again later.",
        )
    folder = folders()[-1]
    make_folder(folder)
    write_bytes(folder / name, data)
    return folder / name


def clip_vocabulary(merges: Path) -> dict[str, bytes]:
    """Return `vocab.json` and `merges.txt` of CLIP's tokenizer, byte for byte as its authors publish them.

    Args:
        merges: the file `CLIP_MERGES`. Of its merges, as in CLIP's own tokenizer, those count that fill 49,408 entries.
    """
    lines = gzip.decompress(merges.read_bytes()).decode("utf-8").split("\n")[1 : 49_408 - 2 * 256 - 1]
    # Bytes in the order of GPT-2's table: printable ones stand for themselves, the others for letters above 255.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = letters + [f"{letter}</w>" for letter in letters] + [line.replace(" ", "") for line in lines]
    entries = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return {
        "vocab.json": json.dumps(entries, ensure_ascii=False).encode(),
        "merges.txt": "".join(f"{line}\n" for line in ["#version: 0.2", *lines]).encode(),
    }


@lru_cache(maxsize=16)
def _content_fault(file: Path, name: str, size: int, changed: int) -> str:
    """Return why the content is wrong, cached by size and time."""
    model = small_models()[name]
    if size != model.size:
        return f"is not {name}"
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if digest == model.sha256 else f"is not {name} (checksum mismatch)"
