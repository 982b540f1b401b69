"""Small model files: where they are found, and their download."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastdb.downloads import small_models
from fastdb.downloads.small_models import CLIP_MERGES, YUNET, clip_vocabulary, fetch, find
from fastdb.errors import ModelError, StorageError
from fastdb.runtime import paths

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
CONTENT = b"a model of 23 bytes   ."


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Drive and an empty cache."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "DRIVES", (tmp_path / "MyDrive",))
    monkeypatch.setenv("no_proxy", "*")


class Server:
    """A web server on this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.served: dict[str, bytes] = {}
        self.asked: list[str] = []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve models by path; YuNet's address in the lock is `/model`, with the checksum of `CONTENT`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            body = found.served.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        found = Server(f"http://127.0.0.1:{running.server_port}")
        place(monkeypatch, f"{found.address}/model")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield found
        running.shutdown()
        thread.join()


def place(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Replace YuNet in the lock by `CONTENT` at another address."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    model = replace(small_models.small_models()[YUNET], size=len(CONTENT), sha256=sha256, address=address)
    monkeypatch.setattr(small_models, "small_models", lambda: {YUNET: model})
    small_models._content_fault.cache_clear()


def test_the_lock_names_size_checksum_licence_and_address() -> None:
    models = small_models.small_models()
    assert list(models) == [YUNET, CLIP_MERGES]
    for model in models.values():
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.address.startswith("https://")
        assert model.address.endswith(model.name)
    assert [model.licence for model in models.values()] == ["Apache-2.0", "MIT"]


def test_the_lock_describes_the_real_file() -> None:
    file = SHARED / YUNET
    if not file.exists():
        pytest.skip("needs ../shared/models beside the repository")
    assert small_models.fault(file, YUNET) == ""
    assert small_models.fault(file, CLIP_MERGES) == f"is not {CLIP_MERGES}"


def test_a_model_is_downloaded_once_and_verified(server: Server, tmp_path: Path) -> None:
    server.served["/model"] = CONTENT
    assert find(YUNET) is None
    path = fetch(YUNET)
    assert path == tmp_path / "cache" / YUNET
    assert path.read_bytes() == CONTENT
    assert fetch(YUNET) == find(YUNET) == path
    assert server.asked == ["/model"]
    path.write_bytes(b"damaged")
    assert fetch(YUNET).read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == [YUNET]


def test_with_drive_a_model_is_kept_there(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.served["/model"] = CONTENT
    (tmp_path / "MyDrive").mkdir()
    kept = tmp_path / "MyDrive" / "Fast-Dreambooth" / "models" / YUNET
    assert fetch(YUNET) == kept
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "another machine"))
    assert find(YUNET) == kept


def test_the_wheels_own_model_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch, "http://127.0.0.1:9/")
    for folder in ("wheel", "cache"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / YUNET).write_bytes(CONTENT)
    monkeypatch.setattr(small_models, "_BUNDLED", tmp_path / "wheel")
    assert find(YUNET) == tmp_path / "wheel" / YUNET
    (tmp_path / "wheel" / YUNET).write_bytes(CONTENT.upper())
    assert find(YUNET) == tmp_path / "cache" / YUNET


def test_a_failed_download_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be downloaded .*Not Found.*Try again"):
        fetch(YUNET)
    server.served["/model"] = b"version https://git-lfs.github.com/spec/v1\n"
    with pytest.raises(ModelError, match="does not match the expected checksum"):
        fetch(YUNET)
    assert not (tmp_path / "cache").exists()


def test_an_unreachable_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        place(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(ModelError, match=r"could not be downloaded .*refused"):
            fetch(YUNET)
        silent.listen()
        with pytest.raises(ModelError, match=r"could not be downloaded .*timed out"):
            fetch(YUNET, timeout=0.2)


def test_an_unusable_cache_folder_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.served["/model"] = CONTENT
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="is not a folder"):
        fetch(YUNET)


def test_the_vocabulary_of_clip_follows_from_its_merges(tmp_path: Path) -> None:
    """Compare with the published files, made back into the merges that OpenAI ships."""
    import gzip

    published = SHARED / "clip_tokenizer"
    if not published.is_dir():
        pytest.skip("needs ../shared/models beside the repository")
    merges = (published / "merges.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    file = tmp_path / CLIP_MERGES
    file.write_bytes(gzip.compress(f"head\n{merges}one merge\ntoo many\n".encode()))
    made = clip_vocabulary(file)
    assert made["vocab.json"] == (published / "vocab.json").read_bytes()
    assert made["merges.txt"] == (published / "merges.txt").read_bytes()
    assert len(json.loads(made["vocab.json"])) == 49_408
