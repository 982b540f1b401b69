"""Downloads of shared Google Drive folders by gdown from a local server."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

requests = pytest.importorskip("requests")
pytest.importorskip("gdown")

from fastdb.commands import sharing
from fastdb.downloads import civitai_and_drive
from fastdb.errors import FastDBError, SessionError
from fastdb.runtime.paths import cache_folder
from fastdb.sessions.session import Session
from fastdb.sharing.drive_folder import folder_number

TOP = "1ZXEhzbLRLU1giKKRJkjm8N04cO_JoYE2"
LINK = f"https://drive.google.com/drive/folders/{TOP}?usp=sharing"
YAML = b"format: 1\nname: cup\ncreated: ''\nbase_model: {folder: mini, fingerprint: '0'}\n"

Tree = dict[str, "Tree | bytes"]


class Drive:
    """Folders and files by number, as Google shows them."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.status = 200

    def share(self, name: str, tree: Tree, number: str = TOP) -> None:
        """Put a folder there, with the page that Google shows of it."""
        links = []
        for inner, content in tree.items():
            own = f"{'x' * 20}{len(self.pages) + len(self.files):013d}"
            if isinstance(content, bytes):
                self.files[own] = content
                link = f"https://drive.google.com/file/d/{own}/view?usp=drive_web"
            else:
                self.pages[own] = b""
                self.share(inner, content, own)
                link = f"https://drive.google.com/drive/folders/{own}"
            links.append(f'<div class="flip-entry"><a href="{link}"><div>{html.escape(inner)}</div></a></div>')
        page = f"<html><head><title>{html.escape(name)}</title></head><body>{''.join(links)}</body></html>"
        self.pages[number] = page.encode()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that other tests leave to be resumed do not count here."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    """A server in Google's place, for gdown's requests and for ours."""
    google = Drive()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            link = urlsplit(self.path)
            number = parse_qs(link.query).get("id", [""])[0]
            kind = google.pages if link.path == "/embeddedfolderview" else google.files
            data = kind.get(number)
            self.send_response(google.status if data is not None else 404)
            self.send_header(
                "Content-Type", "text/html; charset=utf-8" if kind is google.pages else "application/octet-stream"
            )
            if kind is google.files:
                self.send_header("Content-Disposition", 'attachment; filename="another name.bin"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *given: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    send = requests.Session.send

    def sent_here(session, request, **more):  # type: ignore[no-untyped-def]
        assert request.url.startswith("https://drive.google.com/")
        request.url = request.url.replace("https://drive.google.com", here)
        return send(session, request, **more)

    monkeypatch.setattr(requests.Session, "send", sent_here)
    monkeypatch.setattr(civitai_and_drive, "DRIVE", here)
    yield google
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("link", "number"),
    [
        (LINK, TOP),
        (f"https://drive.google.com/drive/folders/{TOP}/", TOP),
        (f"https://drive.google.com/drive/u/1/folders/{TOP}", TOP),
        (f" https://drive.google.com/open?id={TOP} ", TOP),
        (f"https://drive.google.com/folderview?id={TOP}&usp=x", TOP),
        (f"https://drive.google.com/file/d/{TOP}/view", ""),
        (f"https://drive.google.com/uc?id={TOP}", ""),
        (f"https://drive.google.com.evil.org/drive/folders/{TOP}", ""),
        (f"ftp://drive.google.com/drive/folders/{TOP}", ""),
        ("https://drive.google.com/drive/folders/..%2f..%2fxxxxxxxx", ""),
        ("https://[drive.google.com/folders", ""),
        ("cup.zip", ""),
    ],
)
def test_a_link_of_a_folder_is_told_from_others(link: str, number: str) -> None:
    assert folder_number(link) == number


def left() -> list[str]:
    coming = cache_folder() / "coming"
    return sorted(path.name for path in coming.iterdir()) if coming.is_dir() else []


def test_a_shared_folder_becomes_a_session(drive: Drive, sessions_folder: Path) -> None:
    captions: Tree = {"a.txt": b"on a table", "\xfc b.txt": b"two"}
    drive.share("my cup (2)", {"session.yaml": YAML, "captions": captions, ".DS_Store": b"1", "originals": {}})
    session = sharing.adopt(LINK)
    assert session.path == sessions_folder / "my_cup_2"
    assert (session.captions / "a.txt").read_bytes() == b"on a table"
    assert (session.captions / "\xfc b.txt").read_bytes() == b"two"
    assert not (session.path / ".DS_Store").exists()
    assert left() == []


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"session.yaml": YAML, "captions": {"a*.txt": b"1"}},
            r"'captions/a*.txt' has a name that Windows or Google Drive",
        ),
        ({"session.yaml": YAML, "captions": {"a.txt": b"1", "A.txt": b"2"}}, "'captions/A.txt' is there twice"),
        ({"session.yaml": YAML, "x": {"a": b"1"}, "X": b"2"}, "there twice"),
        ({"captions": {"a.txt": b"1"}}, "contains no session"),
        ({}, "holds no files, or is not shared"),
        ({"session.yaml": b"a: ["}, "cannot be read as YAML"),
    ],
)
def test_a_folder_that_is_no_session_leaves_nothing(tree: Tree, said: str, drive: Drive, sessions_folder: Path) -> None:
    drive.share("cup", tree)
    with pytest.raises(FastDBError) as caught:
        sharing.adopt(LINK)
    assert said in str(caught.value)
    assert TOP in str(caught.value), "told of the link, and not of a folder that is gone"
    assert not sessions_folder.exists() or list(sessions_folder.iterdir()) == []
    assert left() == []


def test_a_folder_that_is_not_shared_is_said(drive: Drive) -> None:
    with pytest.raises(SessionError, match=r"Google Drive does not list it .*Ask the owner to share it"):
        sharing.adopt(LINK)


def test_a_file_that_is_gone_leaves_nothing(drive: Drive, sessions_folder: Path) -> None:
    drive.share("cup", {"session.yaml": YAML, "captions": {"a.txt": b"1"}})
    drive.files.popitem()
    with pytest.raises(FastDBError, match="404"):
        sharing.adopt(LINK)
    assert list(Session.list(sessions_folder)) == []
    assert left() == []


def test_names_that_lead_elsewhere_become_plain_ones(drive: Drive, tmp_path: Path) -> None:
    drive.share("../../evil", {"session.yaml": YAML, "../../evil.txt": b"1", "..": {"a.txt": b"1"}})
    before = {path.name for path in tmp_path.iterdir()}
    session = sharing.adopt(LINK, "cup")
    assert session.path.parent == tmp_path / "sessions"
    assert not [path for path in session.path.rglob("*") if "evil" in path.name]
    assert {path.name for path in tmp_path.iterdir()} <= {*before, "sessions", "cache"}
    assert left() == []
