"""Servers on this machine, no token but a test's own, a cache of its own, and no waiting between tries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdb.downloads import http_client, tokens
from tests.downloads.server import Hub, Server

SIZE = 1_300_001


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "CIVITAI_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "_login_file", lambda: tmp_path / "no-login")
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def other() -> Iterator[Server]:
    """A server with another host's name."""
    with Server("localhost").running() as running:
        yield running


@pytest.fixture
def hub(other: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    own = Hub(other)
    monkeypatch.setenv("HF_ENDPOINT", own.url)
    with own.running():
        yield own


@pytest.fixture(scope="session")
def data() -> bytes:
    """Bytes in which no piece equals another."""
    return random.Random(7).randbytes(SIZE)
