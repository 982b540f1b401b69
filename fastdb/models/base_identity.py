"""Identity of a session's base model: the hashes of its weights and of the configurations that decide its behaviour."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastdb.errors import FastDBError, StorageError, TrainingError
from fastdb.models.diffusers_folder import fingerprint, read_config
from fastdb.models.registry import MINI
from fastdb.runtime.paths import cache_folder, expanded
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.atomic_write import explained, make_folder, write_json
from fastdb.storage.manifest import sha256

EARLIER_MINI = {"551b738786c7fd98f7d5b9c7bfcb2dc94866923eb76411bfac83fe3d3fcb66c9": "0.1.0"}
"""The version of this package that shipped each earlier mini, by its fingerprint."""

CONFIGURATIONS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
)
"""Files that decide the behaviour of a base model beside its weights."""
_WITHOUT_EFFECT = {
    "architectures",
    "dtype",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "torch_dtype",
    "transformers_version",
}
"""Keys of these files that record their origin; so do keys that begin with an underscore."""
_DIGITS = 16
"""Digits of a configuration's hash, which detects mistakes and is no defence against an attacker."""
_RACY = 2.0
"""Seconds after a change for which the hash of a file is not remembered: another change might keep its time."""


def configurations(folder: Path) -> dict[str, str]:
    """Return a hash of each configuration of a base model in diffusers layout, by its path in the folder.

    Keys that record the origin of a file do not count, nor do spaces, the order of keys and empty values.

    Raises:
        ModelError: a file contains no JSON object.
        StorageError: a file cannot be read.
    """
    hashes = {}
    for name in CONFIGURATIONS:
        path = folder / name
        if path.is_file():
            with explained(path):
                content = _canonical(read_config(path)) if path.suffix == ".json" else path.read_bytes()
            hashes[name] = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return hashes


def check_identity(record: BaseModelRecord, folder: Path, *, remembered: bool = True) -> None:
    """Raise if a base model is not the one that a session began with.

    Args:
        folder: in diffusers layout.
        remembered: trust hashes that this machine computed for files of the same size and times.

    Raises:
        ModelError: a file is missing.
        StorageError: a file cannot be read.
        TrainingError: weights or configurations differ.
    """
    check_not_earlier_mini(record)
    what = ""
    if differing := differing_configurations(record, folder):
        rest = f" and {len(differing) - 1} more configurations" if len(differing) > 1 else ""
        what = f"this base model has another {differing[0]}{rest} than the session began with"
    elif fingerprint(folder, remembered_sha256 if remembered else sha256) != record.fingerprint:
        what = "this base model has other weights than the session began with"
    if what:
        origin = "" if expanded(record.folder) == folder else f" (made of {record.folder})"
        raise TrainingError(
            f"{what}{origin}",
            where=folder,
            fix="Restore the original base model there, or create a session with this one: fastdb new NAME --base "
            f"{record.folder}",
        )


def version_of_earlier_mini(record: BaseModelRecord) -> str:
    """Return the version whose mini a session began with; empty if it is the current one or another model."""
    return EARLIER_MINI.get(record.fingerprint, "") if record.folder == MINI else ""


def check_not_earlier_mini(record: BaseModelRecord) -> None:
    """Raise if a session began with a mini that an earlier version shipped; the message names the version.

    Raises:
        TrainingError: it did.
    """
    if version := version_of_earlier_mini(record):
        raise TrainingError(
            f"this session began with the mini of fastdb {version}, which this version does not contain",
            fix=f"Install fastdb {version} to continue it, or create a session with the current mini: "
            "fastdb new NAME --base mini",
        )


def differing_configurations(record: BaseModelRecord, folder: Path) -> list[str]:
    """Return the configurations that differ from those recorded; none if earlier versions recorded none.

    Raises:
        ModelError: a file contains no JSON object.
        StorageError: a file cannot be read.
    """
    if not record.configurations:
        return []
    now = configurations(folder)
    return [name for name in CONFIGURATIONS if now.get(name) != record.configurations.get(name)]


def base_fault(record: BaseModelRecord) -> str:
    """Return why the base model on this machine cannot be a session's, as a clause; empty if nothing is known.

    Weights are not read; they are compared by hashes that this machine computed earlier.
    """
    path = expanded(record.folder)
    if record.folder == MINI:
        version = version_of_earlier_mini(record)
        return f"the session began with that of fastdb {version}" if version else ""
    if not path.exists():
        return "" if record.source else "it does not exist"
    if path.is_file():
        return ""  # It is compared after its conversion.
    try:
        if differing := differing_configurations(record, path):
            return f"its {differing[0]} has changed"
        changed = fingerprint(path, _recalled_sha256) != record.fingerprint
        return "its weights have changed" if changed else ""
    except LookupError:
        return ""
    except (FastDBError, OSError) as error:
        return error.problem if isinstance(error, FastDBError) else str(error.strerror)


def _canonical(config: dict[str, Any]) -> bytes:
    kept = {
        key: value
        for key, value in config.items()
        if value is not None and not key.startswith("_") and key not in _WITHOUT_EFFECT
    }
    return json.dumps(kept, sort_keys=True).encode()


def remembered_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, from this machine's notes if it has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    if (digest := _recalled(file)) is not None:
        return digest
    before, began = _facts(file), time.time()
    digest = sha256(file)
    if _facts(file) == before and began - max(before["mtime"], before["ctime"]) / 1e9 > _RACY:
        # A full or read-only cache costs time only.
        with suppress(OSError, StorageError):
            make_folder(_note_of(file).parent)
            write_json(_note_of(file), {**before, "sha256": digest})
    return digest


def _recalled_sha256(file: Path) -> str:
    """Return the hash that this machine computed earlier for a file.

    Raises:
        LookupError: it computed none since the file changed.
        OSError: the file cannot be read.
    """
    if (digest := _recalled(file)) is None:
        raise LookupError(file)
    return digest


def _recalled(file: Path) -> str | None:
    facts = _facts(file)
    try:
        known = json.loads(_note_of(file).read_text(encoding="utf-8"))
        digest = known.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return str(digest) if known == facts else None


def _facts(file: Path) -> dict[str, Any]:
    facts = file.stat()
    return {
        "path": ascii(file.absolute()),
        "bytes": facts.st_size,
        "mtime": facts.st_mtime_ns,
        "ctime": facts.st_ctime_ns,
        "inode": facts.st_ino,
    }


def _note_of(file: Path) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:16]}.json"
