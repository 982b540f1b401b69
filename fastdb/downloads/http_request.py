"""A file on a server, and one request for it: redirects followed by hand, so that a token goes nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastdb.downloads.http_response import refusal
from fastdb.downloads.tokens import Token, origin
from fastdb.errors import ModelError

if TYPE_CHECKING:
    import httpx

WAIT = 30.0
"""Seconds without a byte after which a connection counts as dead."""

MOST_HOPS = 10
LONGEST_PAGE = 1_000_000

PLAIN_GATE = "Download it in a browser, where you can sign in, and give the file's path."


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on a server and what is known of it beforehand."""

    url: str = field(repr=False)
    shown: str
    """What messages and the disk call it: never with anything secret in it."""
    token: Token | None = None
    sha256: str = ""
    size: int | None = None
    name: str = ""
    """What the file will be called; where empty, as the server says."""
    gate: str = PLAIN_GATE
    """What to do where the server refuses."""
    through: Callable[[str], str] | None = None
    """Makes the address to go on with out of the web page that comes first."""


@contextmanager
def connection() -> Iterator[httpx.Client]:
    """A client for one download: cookies live as long as it does, proxies come from the environment."""
    import httpx

    # At a lower level they log whole addresses, and headers: tokens too.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with httpx.Client(timeout=httpx.Timeout(WAIT, connect=10.0), follow_redirects=False) as client:
        yield client


@contextmanager
def asked(client: httpx.Client, remote: Remote, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """Ask for a file and follow redirects; gives the answer with its body still to be read.

    Raises:
        ModelError: it leads in a circle, nowhere, or to a page where one signs in.
        httpx.RequestError: there is no connection, or it broke.
    """
    import httpx

    url = remote.url
    for _ in range(MOST_HOPS):
        secret = remote.token.headers(url) if remote.token else {}
        try:
            request = client.build_request("GET", url, headers={"Accept-Encoding": "identity", **headers, **secret})
        except (httpx.InvalidURL, ValueError):
            raise _nowhere(remote) from None
        response = client.send(request, stream=True)
        try:
            following = _next(remote, response)
            if not following:
                yield response
                return
        finally:
            response.close()
        url = following
    raise ModelError(
        f"its server redirects more than {MOST_HOPS} times", where=remote.shown, fix="Choose another source."
    )


def _next(remote: Remote, response: httpx.Response) -> str:
    """The address to go on with; empty where this answer is the last one."""
    if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
        try:
            url = str(response.url.join(response.headers["location"]))
            scheme, path = urlsplit(url).scheme, urlsplit(url).path
        except ValueError:
            raise _nowhere(remote) from None
        if scheme not in ("http", "https"):
            raise _nowhere(remote)
        if origin(url) == origin(remote.url) and path.rstrip("/").endswith("/login"):
            raise refusal(remote, response.status_code, login=True)
        return url
    html = response.headers.get("content-type", "").lower().startswith("text/html")
    if response.status_code == 200 and html and remote.through is not None:
        page = b""
        for piece in response.iter_bytes():
            page += piece
            if len(page) > LONGEST_PAGE:
                break
        return remote.through(page.decode("utf-8", "replace"))
    return ""


def _nowhere(remote: Remote) -> ModelError:
    return ModelError("its server redirects to no address", where=remote.shown, fix="Choose another source.")
