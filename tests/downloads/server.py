"""Local HTTP servers for these tests, a faulty file server and a Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT, LATER = "a" * 40, "b" * 40


@dataclass
class File:
    """What a server has at an address, and how it behaves there."""

    data: bytes = b""
    etag: str = '"one"'
    last_modified: str = ""
    disposition: str = ""
    content_type: str = "application/octet-stream"
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is respected; without it the rest of another file is sent."""
    announced: int | None = None
    """What it says its length is, in place of the truth."""
    chunked: bool = False
    drop_every: int = 0
    """Closes the connection after so many bytes of each answer."""
    failing: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers it gives first."""
    token: str = ""
    location: str = ""
    delay: float = 0.0
    """Seconds before each 64 KB."""


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0
    """Bytes of a file it was answered with; those on their way when a client went count."""


class Server:
    """Files by path; keeps what it was asked."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.files: dict[str, File] = {}
        self.log: list[Asked] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        # A client that was killed is no news here.
        self._http.handle_error = lambda request, address: None  # type: ignore[method-assign, assignment]
        self.url = f"http://{host}:{self._http.server_address[1]}"

    def answer(self, path: str, headers: dict[str, str]) -> File | None:
        """What to give for a path."""
        return self.files.get(path)

    def asked(self, path: str) -> list[Asked]:
        return [request for request in self.log if request.path.split("?")[0] == path]

    @property
    def sent(self) -> int:
        """Bytes sent in answer to what is in the log: an answer nobody waits for any more adds nothing to the next."""
        return sum(request.sent for request in self.log)

    def seen(self) -> str:
        """All requests as text, to search for secrets."""
        return json.dumps([[request.path, request.headers] for request in self.log])

    @contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            try:
                self._get()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_GET

        def _get(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers)
            server.log.append(asked)
            file = server.answer(unquote(urlsplit(self.path).path), headers)
            if file is None:
                self._short(404, {})
            elif file.failing:
                self._short(*file.failing.pop(0))
            elif file.token and headers.get("authorization") != f"Bearer {file.token}":
                self._short(403 if "authorization" in headers else 401, {})
            elif file.location:
                self._short(302, {"Location": file.location})
            else:
                self._file(file, asked)

        def _short(self, status: int, extra: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, file: File, asked: Asked) -> None:
            headers = asked.headers
            start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            known = headers.get("if-range") in (None, file.etag, file.last_modified)
            partial = "range" in headers and file.ranges and (known or not file.if_range)
            start = start if partial else 0
            if partial and start >= len(file.data):
                self._short(416, {"Content-Range": f"bytes */{len(file.data)}", "ETag": file.etag})
                return
            body = file.data[start:]
            self.send_response(206 if partial else 200)
            self.send_header("Content-Type", file.content_type)
            for name, value in (
                ("ETag", file.etag),
                ("Last-Modified", file.last_modified),
                ("Content-Disposition", file.disposition),
            ):
                if value:
                    self.send_header(name, value)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(file.data) - 1}/{len(file.data)}")
            if file.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body) if file.announced is None else file.announced - start))
            self.end_headers()
            if self.command == "GET":
                self._send(file, body, asked)

        def _send(self, file: File, body: bytes, asked: Asked) -> None:
            left = file.drop_every or len(body)
            for place in range(0, min(left, len(body)), 65536):
                time.sleep(file.delay)
                piece = body[place : min(place + 65536, left)]
                asked.sent += len(piece)
                if file.chunked:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                else:
                    self.wfile.write(piece)
            whole = left >= len(body)
            if file.chunked and whole:
                self.wfile.write(b"0\r\n\r\n")
            if not whole or file.announced is not None:
                self.close_connection = True

    return Handler


class Hub(Server):
    """The Hub's endpoints as huggingface_hub asks them, and downloads as it redirects them: small files from itself,
    large ones from another host."""

    def __init__(self, elsewhere: Server) -> None:
        super().__init__()
        self.elsewhere = elsewhere
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: dict[str, str] = {}
        """Repository -> the token that opens it."""
        self.listing_closed = True
        """Whether what is in a gated repository is a secret too; the Hub tells it of most."""
        self.commit = COMMIT
        self.large = 1000
        self.failing: list[tuple[int, dict[str, str]]] = []
        self.behaviour = File()
        """How the other host behaves for every large file."""

    def add(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories[name] = files

    def answer(self, path: str, headers: dict[str, str]) -> File | None:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._information("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", headers)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolved("/".join(parts[:2]), parts[3], "/".join(parts[4:]), headers)
        return None

    def _closed(self, name: str, headers: dict[str, str]) -> File | None:
        if self.failing:
            return File(failing=[self.failing.pop(0)])
        if name not in self.repositories:
            return File(failing=[(401 if "authorization" not in headers else 404, {"X-Error-Code": "RepoNotFound"})])
        if self.gated.get(name) and headers.get("authorization") != f"Bearer {self.gated[name]}":
            status = 403 if "authorization" in headers else 401
            return File(failing=[(status, {"X-Error-Code": "GatedRepo"})])
        return None

    def _information(self, name: str, revision: str, headers: dict[str, str]) -> File:
        closed = self._closed(name, headers)
        if closed is not None and (self.listing_closed or name not in self.gated):
            return closed
        if revision not in ("main", self.commit, COMMIT):
            return File(failing=[(404, {"X-Error-Code": "RevisionNotFound"})])
        siblings: list[dict[str, Any]] = []
        for path, data in self.repositories[name].items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "0" * 40}
            if len(data) >= self.large:
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        commit = self.commit if revision == "main" else revision
        info = {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": False,
            "siblings": siblings,
            "tags": [],
        }
        return File(json.dumps(info).encode(), content_type="application/json", etag="")

    def _resolved(self, name: str, revision: str, path: str, headers: dict[str, str]) -> File | None:
        closed = self._closed(name, headers)
        data = self.repositories.get(name, {}).get(path)
        if closed is not None or data is None:
            return closed
        if len(data) < self.large:
            return File(data, etag=f'"{hashlib.sha1(data).hexdigest()}"', content_type="text/plain; charset=utf-8")
        digest = hashlib.sha256(data).hexdigest()
        there = f"/cdn/{digest}"
        if there not in self.elsewhere.files:
            self.elsewhere.files[there] = replace(self.behaviour, data=data, etag=f'"{digest}"')
        return File(location=f"{self.elsewhere.url}{there}?X-Amz-Signature=signed")
