"""What a person may name as a base model, read without a network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from fastdb.downloads.tokens import redacted
from fastdb.errors import ModelError
from fastdb.runtime.paths import expanded

HUB = "https://huggingface.co"
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
"""Endings of a model in a single file."""

WAYS = (
    "Name a Hub repository (owner/name), a file in one (owner/name/file.safetensors), a link of huggingface.co, "
    "civitai.com or Google Drive, any other link, or a path."
)

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_CIVITAI_HOSTS = ("civitai.com", "www.civitai.com")
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_OWNER = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"(?P<name>{_OWNER}/{_OWNER})(@(?P<revision>[\w./-]+))?", re.ASCII)
_FILE = re.compile(rf"(?P<name>{_OWNER}/{_OWNER})(@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+))?/(?P<path>.+)", re.ASCII)


@dataclass(frozen=True)
class HubRepository:
    """A diffusers repository on the Hub; `revision` is a branch, a tag or a commit, empty for the newest."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class HubFile:
    """A single file in a repository on the Hub."""

    name: str
    path: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}/{self.path}" if self.revision else f"{self.name}/{self.path}"


@dataclass(frozen=True)
class CivitaiFile:
    """A version of a model on Civitai; `query` chooses among its files, `secret` is the token its link came with."""

    version: int
    query: str = ""
    secret: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return f"https://civitai.com/api/download/models/{self.version}" + (f"?{self.query}" if self.query else "")


@dataclass(frozen=True)
class DriveFile:
    """A file on Google Drive that is shared by link."""

    number: str

    def __str__(self) -> str:
        return f"https://drive.google.com/file/d/{self.number}/view"


@dataclass(frozen=True)
class WebFile:
    """Any file behind a link; what in it is secret is not part of its text."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        return redacted(self.url)


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine, whether it is there or not."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = HubRepository | HubFile | CivitaiFile | DriveFile | WebFile | LocalPath


def hub_endpoint() -> str:
    """Where the Hub is: `HF_ENDPOINT`, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def parse(named: str | Path) -> Source:
    """What a person has named; an existing path goes before everything it might mean besides.

    Raises:
        ModelError: it is nothing that a model could come from.
    """
    if isinstance(named, Path):
        return LocalPath(expanded(named).absolute())
    said = named.strip()
    if not said or any(ord(sign) < 32 for sign in said):
        raise _nonsense(named, "names no base model")
    if len(said) < 4096 and os.path.lexists(expanded(said)):
        return LocalPath(expanded(said).absolute())
    if re.match(rf"({'|'.join(map(re.escape, (*_HUB_HOSTS, *_CIVITAI_HOSTS, *_DRIVE_HOSTS)))})/", said):
        said = f"https://{said}"
    if "://" in said:
        return _from_link(said)
    if said.startswith(("/", ".", "~", "\\")) or "\\" in said or "/" not in said:
        return LocalPath(expanded(said).absolute())
    return _from_hub_name(said)


def _from_hub_name(said: str) -> Source:
    """`owner/name`, `owner/name@revision`, or either with the path of a model file behind it."""
    file = _FILE.fullmatch(said)
    if file and said.lower().endswith(SUFFIXES):
        return HubFile(file["name"], _plain(file["path"], said), file["revision"] or "")
    repository = _REPOSITORY.fullmatch(said)
    if repository and not said.lower().endswith(SUFFIXES):
        return HubRepository(repository["name"], repository["revision"] or "")
    return LocalPath(expanded(said).absolute())


def _from_link(said: str) -> Source:
    try:
        link = urlsplit(said)
        host, known = (link.hostname or "").lower(), link.port is None or link.port > 0
    except ValueError:
        raise _nonsense(said, "is no link that can be followed") from None
    if link.scheme.lower() not in ("http", "https") or not host or not known or " " in said:
        raise _nonsense(said, "is no link that can be followed")
    if host in _HUB_HOSTS or link.netloc == urlsplit(hub_endpoint()).netloc:
        return _from_hub_link(link, said)
    if host in _CIVITAI_HOSTS:
        return _from_civitai_link(link, said)
    if host in _DRIVE_HOSTS:
        return _from_drive_link(link, said)
    if not link.path.strip("/") and not link.query:
        raise _nonsense(said, "is the address of a whole site and names no file")
    return WebFile(urlunsplit(link._replace(fragment="")))


def _from_hub_link(link: SplitResult, said: str) -> Source:
    parts = [unquote(part) for part in link.path.split("/") if part]
    if parts and parts[0] in ("datasets", "spaces", "models", "collections", "papers", "docs"):
        raise _nonsense(said, "is no repository of a model")
    name = "/".join(parts[:2])
    if len(parts) < 2 or not _REPOSITORY.fullmatch(name):
        raise _nonsense(said, "names no repository on the Hub")
    kind, rest = (parts[2] if len(parts) > 2 else ""), parts[3:]
    if kind in ("resolve", "blob", "raw") and len(rest) > 1:
        revision, path = (rest[0], rest[1:]) if rest[0] != "refs" else ("/".join(rest[:3]), rest[3:])
        return HubFile(name, _plain("/".join(path), said), "" if revision == "main" else revision)
    if kind == "tree" and rest:
        revision = rest[0] if rest[0] != "refs" else "/".join(rest[:3])
        return HubRepository(name, "" if revision == "main" else revision)
    if kind and kind != "tree":
        raise _nonsense(said, "is a page about a model and no model")
    return HubRepository(name)


def _from_civitai_link(link: SplitResult, said: str) -> Source:
    query = [(name, value) for name, value in parse_qsl(link.query) if name != "token"]
    secret = parse_qs(link.query).get("token", [""])[0]
    download = re.fullmatch(r"/api/download/models/(\d+)/?", link.path)
    if download:
        return CivitaiFile(int(download[1]), urlencode(query), secret)
    version = dict(query).get("modelVersionId", "")
    if re.match(r"/models/\d+", link.path) and re.fullmatch(r"\d+", version, re.ASCII):
        return CivitaiFile(int(version), "", secret)
    raise ModelError(
        "does not say which version of the model",
        where=repr(redacted(said)),
        fix="Choose a version on its page: the link then ends in modelVersionId=..., or copy that of its download.",
    )


def _from_drive_link(link: SplitResult, said: str) -> Source:
    found = re.search(r"/file/(?:u/\d+/)?d/([\w-]{10,})", link.path)
    number = found[1] if found else parse_qs(link.query).get("id", [""])[0]
    if "/folders/" in link.path:
        raise ModelError(
            "is a folder on Google Drive",
            where=repr(redacted(said)),
            fix="Give the link of one file in it, or mount Drive and give the folder's path.",
        )
    if not re.fullmatch(r"[\w-]{10,}", number, re.ASCII):
        raise _nonsense(said, "names no file on Google Drive")
    return DriveFile(number)


def _plain(path: str, said: str) -> str:
    """A path inside a repository that stays inside a folder."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path:
        raise _nonsense(said, "names no file in a repository")
    return path


def _nonsense(said: str | Path, what: str) -> ModelError:
    text = redacted(str(said))
    return ModelError(what, where=repr(text if len(text) < 200 else f"{text[:160]}..."), fix=WAYS)
