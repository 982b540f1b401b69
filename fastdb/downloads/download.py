"""Resumable download of one file, verified before it gets its final name.

huggingface_hub 1.27 and gdown 5 download files too, but leave nothing to resume from when their process is killed. All
sources therefore share this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.downloads.http_client import Answer, Remote, Retries, RetryableError, get, open_client
from fastdb.errors import ModelError, StorageError
from fastdb.reporting import Progress, format_bytes
from fastdb.storage.atomic_write import TEMPORARY, explained, flush, make_folder, unfinished, write_json

if TYPE_CHECKING:
    import httpx

SPARE = 32_000_000
"""Bytes of the disk that a download leaves free."""

_RECORD = f"{TEMPORARY}.json"
_LONGEST_HEADER = 100_000_000


def download(remote: Remote, folder: Path, progress: Progress | None = None) -> Path:
    """Download a file into a folder, or resume its download.

    A broken connection is retried as long as new data arrives. The file gets its name after it was verified.

    Raises:
        ModelError: the server refuses, cannot be reached, or sends a web page, too little or another file.
        StorageError: the disk is full or cannot be written.
    """
    make_folder(folder)
    while True:
        part, resumed = _complete_part(remote, folder, progress)
        with explained(part.path):
            size = part.total if remote.size is None else remote.size
            fault = file_fault(part.path, sha256=remote.sha256, size=size, name=part.name)
            if not part.done and remote.size is None:
                fault = "is empty"
            if not fault:
                return _publish(part)
            _discard(part)
        # If the part of an earlier run was damaged, the whole file is downloaded once more.
        if not resumed:
            raise ModelError(
                f"the downloaded file {fault}",
                where=remote.shown,
                fix="Try again; if it fails again, choose another source.",
            )


def check_disk_space(folder: Path, count: int, shown: str) -> None:
    """Raise if the disk has no space for `count` more bytes.

    Raises:
        StorageError: the disk is too full.
    """
    with explained(folder):
        free = shutil.disk_usage(folder).free
    if count + SPARE > free:
        raise StorageError(
            f"needs {format_bytes(count + SPARE)} on the disk of {folder}, but only {format_bytes(free)} are free",
            subject=shown,
            fix="Free some space, or set FASTDB_CACHE to a folder on a larger disk.",
        )


def file_fault(path: Path, *, sha256: str = "", size: int | None = None, name: str = "") -> str:
    """Return why a file is not as expected, or an empty string.

    The reason is a clause without subject. A safetensors file is also checked against the length in its own header,
    which detects truncation without a hash.

    Args:
        sha256: the expected hash, if known.
        size: the expected number of bytes, if known.
        name: the file's final name, if `path` is a temporary file.

    Raises:
        StorageError: the file cannot be read.
    """
    with explained(path):
        actual = path.stat().st_size
        if size is not None and actual != size:
            return f"has {actual} bytes instead of {size}"
        if sha256:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest == sha256.lower():
                return ""
            return f"does not match the expected checksum (SHA-256 {digest} instead of {sha256.lower()})"
        expected = _safetensors_length(path) if (name or path.name).endswith(".safetensors") else None
    if expected is not None and actual != expected:
        return f"has {actual} bytes, but its header describes {expected}"
    return ""


def _safetensors_length(path: Path) -> int | None:
    """Return the length in the header of a safetensors file, if readable."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            return None
        text = stream.read(length)
    if len(text) < length:
        return 8 + length
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A partial file `<name>.part` and its record `<name>.part.json`."""

    folder: Path
    name: str
    source: str
    sha256: str
    etag: str
    last_modified: str
    total: int | None
    encoded: bool = False

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}{TEMPORARY}"

    @property
    def done(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0


def _validator(part: _Part) -> str:
    """Return the strong ETag or else the date of a file.

    RFC 9110, 13.1.5, bans a weak ETag in If-Range.
    """
    return part.etag if part.etag and not part.etag.startswith("W/") else part.last_modified


def _range_headers(part: _Part | None) -> dict[str, str]:
    """Return the request headers for the rest of a file."""
    if part is None or not part.done or part.encoded:
        return {}
    validator = _validator(part)
    return {"Range": f"bytes={part.done}-"} | ({"If-Range": validator} if validator else {})


def _continues(answer: Answer, start: int, part: _Part) -> bool:
    """Return whether an answer from `start` continues a part."""
    same = answer.etag in ("", part.etag or answer.etag)
    same = same and answer.last_modified in ("", part.last_modified or answer.last_modified)
    length = None in (part.total, answer.total) or part.total == answer.total
    return start == part.done and same and length and not answer.encoded


def _discard(part: _Part) -> None:
    """Remove a part, its record, and temporary files of a killed process."""
    record = part.folder / f"{part.name}{_RECORD}"
    for path in (part.path, record, *unfinished(record)):
        path.unlink(missing_ok=True)


def _publish(part: _Part) -> Path:
    """Flush a part to disk, then give it its final name."""
    target = part.folder / part.name
    with explained(target):
        flush(part.path)
        os.replace(part.path, target)
        flush(part.folder)
    _discard(part)
    return target


def _find_part(folder: Path, remote: Remote) -> _Part | None:
    """Return the part of an earlier run, if resuming is safe.

    Without an ETag, a date or a hash a newer version of the file on the server would not be noticed.
    """
    for record in sorted(folder.glob(f"*{_RECORD}")):
        try:
            part = _Part(folder=folder, **json.loads(record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if record.name != f"{part.name}{_RECORD}" or (remote.name and part.name != remote.name):
            continue
        same_hash = bool(remote.sha256) and part.sha256 == remote.sha256
        if part.source == remote.shown and (_validator(part) or same_hash):
            return part
    return None


def _complete_part(remote: Remote, folder: Path, progress: Progress | None) -> tuple[_Part, bool]:
    """Download all bytes of a file.

    Returns:
        The complete part, and whether it resumed the part of an earlier run.
    """
    import httpx

    work, retries = _Download(remote, folder, progress), Retries(remote.shown)
    resumed = work.part is not None and work.part.done > 0
    with open_client() as client:
        while True:
            try:
                return work.request(client), resumed
            except (httpx.RequestError, RetryableError) as error:
                done, total = (work.part.done, work.part.total) if work.part else (0, None)
                retries.wait(error, done, total)


class _Download:
    """A download in progress."""

    def __init__(self, remote: Remote, folder: Path, progress: Progress | None) -> None:
        self.remote, self.folder, self.progress = remote, folder, progress
        self.part = _find_part(folder, remote)

    def request(self, client: httpx.Client) -> _Part:
        """Request the rest of the file once and append it."""
        with get(client, self.remote, _range_headers(self.part)) as answer:
            part = self.part = self._accept(answer)
            if answer.status == 416:
                return part
            total = part.total
            if total is not None:
                check_disk_space(self.folder, total - part.done, self.remote.shown)
            self._write(part, answer.body)
        if total is not None and part.done < total:
            raise RetryableError("the connection closed early")
        return part

    def _accept(self, answer: Answer) -> _Part:
        """Return the part that an answer belongs to."""
        part, total = self.part, answer.total
        if part is not None and answer.status in (206, 416):
            same = bool(_validator(part)) and _validator(part) in (answer.etag, answer.last_modified)
            if same and None not in (total, part.total) and total != part.total:
                raise self._wrong_length(f"the server first announced {part.total} bytes and then {total}")
        if answer.status == 416 and part is not None and part.done:
            if total == part.done and _continues(answer, part.done, part):
                return part
        elif answer.status == 206 and part is not None and _continues(answer, answer.start, part):
            return part
        elif answer.status == 200:
            if None not in (total, self.remote.size) and total != self.remote.size:
                raise self._wrong_length(f"the server announced {total} bytes")
            return self._begin(answer)
        # The file changed on the server, or the server ignores the range that was requested.
        if part is not None:
            _discard(part)
        self.part = None
        raise RetryableError("the server returned a different part of the file")

    def _begin(self, answer: Answer) -> _Part:
        """Replace any earlier part by an empty part with its record."""
        part = _Part(
            folder=self.folder,
            name=self.remote.name or answer.name,
            source=self.remote.shown,
            sha256=self.remote.sha256,
            etag=answer.etag,
            last_modified=answer.last_modified,
            total=answer.total,
            encoded=answer.encoded,
        )
        _discard(part)
        record = {key: value for key, value in asdict(part).items() if key != "folder"}
        write_json(self.folder / f"{part.name}{_RECORD}", record)
        return part

    def _write(self, part: _Part, body: Iterator[bytes]) -> None:
        done, limit = part.done, self.remote.size or part.total
        with explained(part.path), part.path.open("ab") as stream:
            for piece in body:
                stream.write(piece)
                done += len(piece)
                if limit is not None and done > limit:
                    raise self._wrong_length("the server sent more bytes than it announced")
                if self.progress:
                    self.progress(done, limit or 0)

    def _wrong_length(self, what: str) -> ModelError:
        if self.part is not None:
            _discard(self.part)
        expected = f" (expected {self.remote.size})" if self.remote.size else ""
        return ModelError(
            f"{what}{expected}",
            where=self.remote.shown,
            fix="Choose another source; the file was changed or damaged there.",
        )
