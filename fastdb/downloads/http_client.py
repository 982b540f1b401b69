"""HTTP requests for files with redirects, refusals and retries."""

from __future__ import annotations

import email.message
import email.utils
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fastdb.downloads.tokens import Token, origin
from fastdb.errors import ModelError
from fastdb.reporting import format_bytes
from fastdb.storage.safe_names import reserved_on_windows

if TYPE_CHECKING:
    import httpx

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as dead."""

RETRYABLE = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
"""Status codes of temporary failures."""

TRIES = 5
"""Consecutive failures without new data after which a download fails."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 90.0
"""Seconds to the second try, doubled each time, and the longest wait that a server may ask for."""

NEW_BYTES = 4096
"""Bytes beyond the furthest point so far that count as new data."""

MAX_REDIRECTS = 10
MAX_PAGE_BYTES = 1_000_000

UNNAMED = "model"
"""File name where neither the server nor the address has a usable one."""

_LONGEST_NAME = 160
"""Bytes of a file name, which leaves room for the prefix and suffix of temporary files within 255."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on a server."""

    url: str = field(repr=False)
    shown: str
    """Its name in messages and on disk; contains no secrets."""
    token: Token | None = None
    sha256: str = ""
    size: int | None = None
    name: str = ""
    """The file name on this machine; empty for the server's."""
    gate: str = "Download the file in a browser where you are signed in, and give its path."
    """The remedy where the server refuses access."""
    follow_page: Callable[[str], str] | None = None
    """Returns the address that a web page in front of the file leads to."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A server's answer to a request for a file.

    Status 200 has the whole file, 206 a part of it, and 416 no bytes, since the requested range starts at its end.
    """

    status: int
    start: int
    """Offset of the first byte in the file; -1 if unknown."""
    total: int | None
    """Size of the file; None if unknown."""
    encoded: bool
    """The server compresses the body, so its lengths and ranges do not count bytes of the file."""
    etag: str
    last_modified: str
    name: str
    body: Iterator[bytes]


class RetryableError(Exception):
    """A temporary failure, with the server's wait in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class Retries:
    """Retries of a download, unlimited while new data arrives."""

    def __init__(self, shown: str, tries: int | None = None) -> None:
        self._shown, self._tries, self._furthest, self._failures = shown, tries or TRIES, 0, 0

    def wait(self, error: Exception, done: int = 0, total: int | None = None) -> None:
        """Wait before the next try.

        Args:
            error: the failure of the last try.
            done: bytes received so far.
            total: size of the file, if known.

        Raises:
            ModelError: too many tries failed, or the server asks for too long a wait.
        """
        if done >= self._furthest + NEW_BYTES:
            self._furthest, self._failures = done, 0
            return
        self._failures += 1
        wait = max(error.wait if isinstance(error, RetryableError) else 0.0, FIRST_WAIT * 2 ** (self._failures - 1))
        if self._failures < self._tries and wait <= LONGEST_WAIT:
            time.sleep(wait)
            return
        reason = f"{_reason(error)}, {self._failures} times in a row"
        if wait > LONGEST_WAIT:
            what, fix = f"{_reason(error)} and asked to wait {wait:.0f} s", "Run the same command again after that."
        elif done:
            whole = f" of {format_bytes(total)}" if total else ""
            what = f"the download stopped after {format_bytes(done)}{whole}: {reason}"
            fix = "Run the same command again; it resumes if the server supports it."
        else:
            what, fix = reason, "Check the network and try again later."
        raise ModelError(what, where=self._shown, fix=fix) from None


@contextmanager
def open_client() -> Iterator[httpx.Client]:
    """Open a client with its own cookies and the environment's proxies."""
    import httpx

    # Below WARNING they log whole addresses and headers, tokens included.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with httpx.Client(timeout=httpx.Timeout(TIMEOUT, connect=10.0), follow_redirects=False) as client:
        yield client


@contextmanager
def get(client: httpx.Client, remote: Remote, headers: Mapping[str, str]) -> Iterator[Answer]:
    """Request a file and yield the answer with its unread body.

    Raises:
        ModelError: the server refuses, redirects without end, or returns a web page.
        RetryableError: the failure is temporary.
        httpx.RequestError: the connection failed.
    """
    with _follow_redirects(client, remote, headers) as response:
        status = response.status_code
        if status in RETRYABLE:
            raise RetryableError(f"the server answered {status}", _retry_after(response))
        if status not in (200, 206) and not (status == 416 and "Range" in headers):
            raise _refusal(remote, status)
        encoded = response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
        body = response.iter_bytes() if encoded else response.iter_raw()
        if status == 200:
            # Checked before the caller discards a partial file: a captive portal answers 200 with its own page.
            first = _first_bytes(body)
            if _is_page(first, response.headers.get("content-type", "").lower()):
                raise ModelError(
                    "the server returned a web page instead of a model file",
                    where=remote.shown,
                    fix="Use the link of the download button, or download the file in a browser.",
                )
            body = chain((first,), body)
        start, total = _range_of(response)
        yield Answer(
            status=status,
            start=start,
            total=None if encoded and status == 200 else total,
            encoded=encoded,
            etag=response.headers.get("etag", ""),
            last_modified=response.headers.get("last-modified", ""),
            name=_file_name(response, remote.url),
            body=body,
        )


def safe_name(name: str) -> str:
    """Return the last part of a name without special characters.

    It is valid on every system, and empty if nothing is left.
    """
    last = re.split(r"[/\\]", unquote(name, errors="replace"))[-1]
    name = re.sub(r'[\x00-\x1f\x7f-\x9f<>:"|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufffd]', "", last).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    while len(name.encode("utf-8", "ignore")) > _LONGEST_NAME:
        stem = stem[:-1] if stem else ""
        name = f"{stem}{dot}{suffix[:20]}" if stem else name[: _LONGEST_NAME // 4]
    return f"_{name}" if reserved_on_windows(name) else name


@contextmanager
def _follow_redirects(client: httpx.Client, remote: Remote, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """Follow redirects, with the token for its own origin only."""
    import httpx

    url = remote.url
    for _ in range(MAX_REDIRECTS):
        secret = remote.token.headers(url) if remote.token else {}
        try:
            request = client.build_request("GET", url, headers={"Accept-Encoding": "identity", **headers, **secret})
        except (httpx.InvalidURL, ValueError):
            raise _invalid_redirect(remote) from None
        response = client.send(request, stream=True)
        try:
            following = _next_address(remote, response)
            if not following:
                yield response
                return
        finally:
            response.close()
        url = following
    raise ModelError(
        f"the server redirects more than {MAX_REDIRECTS} times", where=remote.shown, fix="Choose another source."
    )


def _next_address(remote: Remote, response: httpx.Response) -> str:
    """Return the address of a redirect, or an empty string."""
    if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
        try:
            url = str(response.url.join(response.headers["location"]))
            scheme, path = urlsplit(url).scheme, urlsplit(url).path
        except ValueError:
            raise _invalid_redirect(remote) from None
        if scheme not in ("http", "https"):
            raise _invalid_redirect(remote)
        if origin(url) == origin(remote.url) and path.rstrip("/").endswith("/login"):
            raise _refusal(remote, response.status_code, login=True)
        return url
    html = response.headers.get("content-type", "").lower().startswith("text/html")
    if response.status_code == 200 and html and remote.follow_page is not None:
        page = b""
        for piece in response.iter_bytes():
            page += piece
            if len(page) > MAX_PAGE_BYTES:
                break
        return remote.follow_page(page.decode("utf-8", "replace"))
    return ""


def _invalid_redirect(remote: Remote) -> ModelError:
    return ModelError("the server redirects to an invalid address", where=remote.shown, fix="Choose another source.")


def _refusal(remote: Remote, status: int, *, login: bool = False) -> ModelError:
    """Return the error for a status that retrying does not change."""
    if status in (401, 403) or login:
        if remote.token is not None and not login:
            what = f"the server refused the download ({status}); the token is invalid or has no access to this model"
        else:
            what = f"the server requires a login ({status})"
        return ModelError(what, where=remote.shown, fix=remote.gate)
    if status in (404, 410):
        return ModelError(
            f"there is no such file on the server ({status})",
            where=remote.shown,
            fix="Check the spelling, and check whether the file was moved or removed.",
        )
    if status == 451:
        return ModelError(
            "the file is not available in your country (451)", where=remote.shown, fix="Choose another source."
        )
    return ModelError(
        f"the server answered {status} instead of sending the file",
        where=remote.shown,
        fix="Open the link in a browser to see the reason, or choose another source.",
    )


def _reason(error: Exception) -> str:
    """Return the reason of a failed try as a clause.

    It omits the exception's own text, which may contain an address with secrets.
    """
    import httpx

    if isinstance(error, RetryableError):
        return error.reason
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return "the server could not be reached"
    if isinstance(error, httpx.TimeoutException):
        return f"the server sent nothing for {TIMEOUT:.0f} s"
    return "the connection broke"


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds in `Retry-After`, a number or a date."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+", text, re.ASCII):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _first_bytes(body: Iterator[bytes]) -> bytes:
    """Read enough of a body to recognise a web page."""
    first = b""
    for piece in body:
        first += piece
        if len(first) >= 512:
            break
    return first


def _is_page(first: bytes, content_type: str) -> bool:
    start = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html")) or ("html" in content_type and start.startswith(b"<"))


def _range_of(response: httpx.Response) -> tuple[int, int | None]:
    """Return the body's offset in the file, and the file's size.

    An unknown offset is -1, an unknown size None.
    """
    if response.status_code in (206, 416):
        header = response.headers.get("content-range", "").strip()
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header, re.IGNORECASE)
        if match is None:
            return -1, None
        return (int(match[1]) if match[1] else -1), (int(match[2]) if match[2] != "*" else None)
    length = response.headers.get("content-length", "")
    return 0, int(length) if re.fullmatch(r"\d+", length, re.ASCII) else None


def _file_name(response: httpx.Response, url: str) -> str:
    """Return the file's name from `Content-Disposition` or the address."""
    header = response.headers.get("content-disposition", "")
    message = email.message.Message()
    message["Content-Disposition"] = re.sub(r"[\r\n]", " ", header)
    # RFC 6266, 4.3: `filename*` goes before `filename`; the email parser prefers the plain parameter.
    extended = re.search(r"filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", header, re.IGNORECASE)
    names = (
        extended[1] if extended else "",
        message.get_filename("") if header else "",
        urlsplit(url).path,
        str(response.url.path),
    )
    return next((name for name in map(safe_name, names) if name), UNNAMED)
