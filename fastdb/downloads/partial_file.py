"""A file on its way: `<name>.part`, and `<name>.part.json`, which remembers what it is the beginning of."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.downloads.http_response import is_encoded
from fastdb.storage.atomic_write import TEMPORARY, explained, flush, unfinished, write_json

if TYPE_CHECKING:
    import httpx

    from fastdb.downloads.http_request import Remote

MEMORY = f"{TEMPORARY}.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """The beginning of a file, with what its server said about the whole of it."""

    folder: Path
    name: str
    source: str
    """What messages call its source: nothing secret is in it."""
    sha256: str
    etag: str
    last_modified: str
    total: int | None
    encoded: bool = False
    """The server counts other bytes than these: it cannot be asked for the rest."""

    @property
    def path(self) -> Path:
        """The bytes so far."""
        return self.folder / f"{self.name}{TEMPORARY}"

    @property
    def done(self) -> int:
        """How many bytes are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str:
        """What tells this version of the file from another: a strong ETag, else a date; empty where there is none."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def rest(self) -> dict[str, str]:
        """What to send to be given the rest of this very file; empty where it has to be the whole."""
        if not self.done or self.encoded:
            return {}
        return {"Range": f"bytes={self.done}-"} | ({"If-Range": self.validator} if self.validator else {})

    def continued_by(self, response: httpx.Response, start: int, total: int | None) -> bool:
        """Whether an answer (206) holds the bytes that come next of the same file."""
        said = {"etag": self.etag, "last-modified": self.last_modified}
        same = all(not old or response.headers.get(name, old) == old for name, old in said.items())
        length = self.total is None or total is None or self.total == total
        return start == self.done and same and length and not is_encoded(response)

    def contradicted_by(self, response: httpx.Response, total: int | None) -> bool:
        """Whether an answer (206, 416) gives this very version of the file another length."""
        said = (response.headers.get("etag", ""), response.headers.get("last-modified", ""))
        same = bool(self.validator) and self.validator in said
        return same and response.status_code in (206, 416) and None not in (total, self.total) and total != self.total

    def discard(self) -> None:
        """Remove it, and what a process left that was killed while it began one."""
        memory = self.folder / f"{self.name}{MEMORY}"
        for path in (self.path, memory, *unfinished(memory)):
            path.unlink(missing_ok=True)

    def publish(self) -> Path:
        """Give it its final name, once it is on the disk.

        Raises:
            StorageError: the disk fails.
        """
        target = self.folder / self.name
        with explained(target):
            flush(self.path)
            os.replace(self.path, target)
            flush(self.folder)
        self.discard()
        return target


def begin(folder: Path, name: str, remote: Remote, response: httpx.Response, total: int | None) -> Part:
    """An empty part for an answer that gives the whole file; what was there of another is removed.

    Raises:
        StorageError: the folder cannot be written.
    """
    part = Part(
        folder=folder,
        name=name,
        source=remote.shown,
        sha256=remote.sha256,
        etag=response.headers.get("etag", ""),
        last_modified=response.headers.get("last-modified", ""),
        total=total,
        encoded=is_encoded(response),
    )
    part.discard()
    write_json(folder / f"{name}{MEMORY}", {key: value for key, value in asdict(part).items() if key != "folder"})
    return part


def find(folder: Path, remote: Remote) -> Part | None:
    """What an earlier run left of this file, unless nothing would tell it from a newer version of it.

    Another server may go on with it where the hash of the whole is known: the hash decides in the end.
    """
    for memory in sorted(folder.glob(f"*{MEMORY}")):
        try:
            part = Part(folder=folder, **json.loads(memory.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if memory.name != f"{part.name}{MEMORY}" or (remote.name and part.name != remote.name):
            continue
        if part.source == remote.shown and (part.validator or (remote.sha256 and part.sha256 == remote.sha256)):
            return part
        if remote.sha256 and part.sha256 == remote.sha256:
            known = {**asdict(part), "source": remote.shown, "etag": "", "last_modified": ""}
            return Part(**known)
    return None
