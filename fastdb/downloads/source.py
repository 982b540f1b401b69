"""Sources of a base model, parsed from text without network access."""

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
"""File name endings of single-file models."""

SUPPORTED = (
    "Name a Hub repository (owner/name), a file in a repository (owner/name/file.safetensors), a link (huggingface.co, "
    "civitai.com, Google Drive or another site), or a path."
)

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_CIVITAI_HOSTS = ("civitai.com", "www.civitai.com")
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_OWNER = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"(?P<name>{_OWNER}/{_OWNER})(@(?P<revision>[\w./-]+))?", re.ASCII)
_FILE = re.compile(rf"(?P<name>{_OWNER}/{_OWNER})(@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+))?/(?P<path>.+)", re.ASCII)


@dataclass(frozen=True)
class HubRepository:
    """A diffusers repository on the Hub.

    `revision` is a branch, tag or commit; empty for the newest.
    """

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
    """A version of a model on Civitai.

    `query` selects one of its files, `secret` is a token contained in the link.
    """

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
    """A file behind any other link.

    The link may contain secrets, which `str()` omits.
    """

    url: str = field(repr=False)

    def __str__(self) -> str:
        return redacted(self.url)


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine, which need not exist."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = HubRepository | HubFile | CivitaiFile | DriveFile | WebFile | LocalPath


def hub_endpoint() -> str:
    """Return the address of the Hub, `HF_ENDPOINT` or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def parse(named: str | Path) -> Source:
    """Parse a source as typed.

    An existing path takes precedence over every other reading.

    Raises:
        ModelError: the text is not a supported source.
    """
    if isinstance(named, Path):
        return LocalPath(expanded(named).absolute())
    text = named.strip()
    if not text or any(ord(character) < 32 for character in text):
        raise _unsupported(named, "not a name of a base model")
    if len(text) < 4096 and os.path.lexists(expanded(text)):
        return LocalPath(expanded(text).absolute())
    if re.match(rf"({'|'.join(map(re.escape, (*_HUB_HOSTS, *_CIVITAI_HOSTS, *_DRIVE_HOSTS)))})/", text):
        text = f"https://{text}"
    if "://" in text:
        return _from_link(text)
    if text.startswith(("/", ".", "~", "\\")) or "\\" in text or "/" not in text:
        return LocalPath(expanded(text).absolute())
    return _from_hub_name(text)


def _from_hub_name(text: str) -> Source:
    """Parse `owner/name[@revision][/path of a model file]`."""
    file = _FILE.fullmatch(text)
    if file and text.lower().endswith(SUFFIXES):
        return HubFile(file["name"], _checked_path(file["path"], text), file["revision"] or "")
    repository = _REPOSITORY.fullmatch(text)
    if repository and not text.lower().endswith(SUFFIXES):
        return HubRepository(repository["name"], repository["revision"] or "")
    return LocalPath(expanded(text).absolute())


def _from_link(text: str) -> Source:
    try:
        link = urlsplit(text)
        host, known = (link.hostname or "").lower(), link.port is None or link.port > 0
    except ValueError:
        raise _unsupported(text, "not a valid http or https link") from None
    if link.scheme.lower() not in ("http", "https") or not host or not known or " " in text:
        raise _unsupported(text, "not a valid http or https link")
    if host in _HUB_HOSTS or link.netloc == urlsplit(hub_endpoint()).netloc:
        return _from_hub_link(link, text)
    if host in _CIVITAI_HOSTS:
        return _from_civitai_link(link, text)
    if host in _DRIVE_HOSTS:
        return _from_drive_link(link, text)
    if not link.path.strip("/") and not link.query:
        raise _unsupported(text, "the link leads to a whole site, not to a file")
    return WebFile(urlunsplit(link._replace(fragment="")))


def _from_hub_link(link: SplitResult, text: str) -> Source:
    parts = [unquote(part) for part in link.path.split("/") if part]
    if parts and parts[0] in ("datasets", "spaces", "models", "collections", "papers", "docs"):
        raise _unsupported(text, "not a repository of a model")
    name = "/".join(parts[:2])
    if len(parts) < 2 or not _REPOSITORY.fullmatch(name):
        raise _unsupported(text, "the link does not name a repository on the Hub")
    kind, rest = (parts[2] if len(parts) > 2 else ""), parts[3:]
    if kind in ("resolve", "blob", "raw") and len(rest) > 1:
        revision, path = (rest[0], rest[1:]) if rest[0] != "refs" else ("/".join(rest[:3]), rest[3:])
        return HubFile(name, _checked_path("/".join(path), text), "" if revision == "main" else revision)
    if kind == "tree" and rest:
        revision = rest[0] if rest[0] != "refs" else "/".join(rest[:3])
        return HubRepository(name, "" if revision == "main" else revision)
    if kind and kind != "tree":
        raise _unsupported(text, "the link leads to a page about a model, not to the model")
    return HubRepository(name)


def _from_civitai_link(link: SplitResult, text: str) -> Source:
    query = [(name, value) for name, value in parse_qsl(link.query) if name != "token"]
    secret = parse_qs(link.query).get("token", [""])[0]
    download = re.fullmatch(r"/api/download/models/(\d+)/?", link.path)
    if download:
        return CivitaiFile(int(download[1]), urlencode(query), secret)
    version = dict(query).get("modelVersionId", "")
    if re.match(r"/models/\d+", link.path) and re.fullmatch(r"\d+", version, re.ASCII):
        return CivitaiFile(int(version), "", secret)
    raise ModelError(
        "the link does not name a version of the model",
        where=repr(redacted(text)),
        fix="Choose a version on its page and copy the link, which then ends in modelVersionId=..., or use the link of "
        "its download button.",
    )


def _from_drive_link(link: SplitResult, text: str) -> Source:
    match = re.search(r"/file/(?:u/\d+/)?d/([\w-]{10,})", link.path)
    number = match[1] if match else parse_qs(link.query).get("id", [""])[0]
    if "/folders/" in link.path:
        raise ModelError(
            "the link leads to a folder on Google Drive",
            where=repr(redacted(text)),
            fix="Use the link of a file in the folder, or mount Drive and give the folder's path.",
        )
    if not re.fullmatch(r"[\w-]{10,}", number, re.ASCII):
        raise _unsupported(text, "the link does not name a file on Google Drive")
    return DriveFile(number)


def _checked_path(path: str, text: str) -> str:
    """Return a path after checking that it stays inside a repository."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path:
        raise _unsupported(text, "the path is not valid in a repository")
    return path


def _unsupported(text: str | Path, what: str) -> ModelError:
    shown = redacted(str(text))
    return ModelError(what, where=repr(shown if len(shown) < 200 else f"{shown[:160]}..."), fix=SUPPORTED)
