"""Downloads from Civitai, Google Drive and other links by `fetch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.downloads import civitai_and_drive
from fastdb.downloads.fetch import fetch
from fastdb.downloads.model_cache import came_from
from fastdb.errors import ModelError
from tests.downloads.server import File, Server

DOWNLOAD = "/api/download/models/128713"
PAGE = "https://civitai.com/models/4384/dreamshaper?modelVersionId=128713"
DRIVE = "1a2B3c4D5e6F7g8H9i0J"
SHARED = f"https://drive.google.com/file/d/{DRIVE}/view?usp=sharing"

CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{url}/download" method="get"><input type="submit" value="Download anyway"/>\
<input type="hidden" name="id" value="x"><input type="hidden" name="confirm" value="t"></form></body></html>"""

QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""

NO_FILE = "Google Drive returned a page instead of the file"

SIGN_IN = "<!DOCTYPE html><html><head><title>Google Drive: Sign-in</title></head><body>Sign in</body></html>"


def refused(named: str) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(named)
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def civitai(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(civitai_and_drive, "CIVITAI", server.url)
    return server


@pytest.fixture
def google(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    pytest.importorskip("gdown")
    monkeypatch.setattr(civitai_and_drive, "DRIVE", server.url)
    return server


def test_civitai_names_the_file_itself(civitai: Server, other: Server, data: bytes) -> None:
    civitai.files[DOWNLOAD] = File(location=f"{other.url}/7f3a?X-Amz-Signature=signed")
    other.files["/7f3a"] = File(
        data, disposition='attachment; filename="dreamshaper_8.safetensors"', drop_every=400_000
    )
    path = fetch(PAGE)
    assert (path.name, path.read_bytes()) == ("dreamshaper_8.safetensors", data)
    assert came_from(path) == "https://civitai.com/api/download/models/128713"
    asked = len(civitai.log)
    assert fetch("https://civitai.com/api/download/models/128713") == path
    assert len(civitai.log) == asked, "once"


@pytest.mark.parametrize("way", ["environment", "link"])
def test_civitais_token_is_sent_to_civitai_only(
    way: str,
    civitai: Server,
    other: Server,
    data: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    civitai.files[DOWNLOAD] = File(location=f"{other.url}/7f3a", token="s3cr3t0")
    other.files["/7f3a"] = File(data)
    named = "https://civitai.com/api/download/models/128713"
    if way == "environment":
        monkeypatch.setenv("CIVITAI_TOKEN", "s3cr3t0")
    else:
        named += "?token=s3cr3t0"
    path = fetch(named)
    assert path.read_bytes() == data
    assert civitai.log[0].path == DOWNLOAD
    assert civitai.log[0].headers["authorization"] == "Bearer s3cr3t0"
    assert "authorization" not in other.log[0].headers
    assert "s3cr3t" not in other.seen() + "".join(capfd.readouterr())
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if b"s3cr3t" in file.read_bytes() or "s3cr3t" in str(file)] == []


def test_a_refusal_of_civitai_explains_how_to_create_a_key(civitai: Server) -> None:
    civitai.files[DOWNLOAD] = File(token="s3cr3t0")
    message = refused(PAGE)
    assert message.startswith("https://civitai.com/api/download/models/128713: the server requires a login (401).")
    assert "Create an API key in your account settings on civitai.com, set it as CIVITAI_TOKEN" in message
    assert "the token is invalid or has no access" in refused(
        "https://civitai.com/api/download/models/128713?token=s3cr3t1"
    )
    civitai.files[DOWNLOAD] = File(location="/login?returnUrl=/x&reason=download-auth")
    civitai.files["/login"] = File(SIGN_IN.encode(), content_type="text/html")
    assert "the server requires a login (302). Create an API key" in refused(PAGE)


def test_google_drives_confirmation_page_is_followed(google: Server, other: Server, data: bytes) -> None:
    google.files["/uc"] = File(CONFIRM.format(url=other.url).encode(), content_type="text/html; charset=utf-8", etag="")
    other.files["/download"] = File(data, disposition='attachment; filename="my model.ckpt"', drop_every=400_000)
    path = fetch(SHARED)
    assert (path.name, path.read_bytes()) == ("my model.ckpt", data)
    assert google.log[0].path == f"/uc?export=download&id={DRIVE}"
    ranges = [request.headers.get("range") for request in other.log]
    assert ranges == [
        None,
        "bytes=400000-",
        "bytes=800000-",
        "bytes=1200000-",
    ]
    assert all("confirm=t" in request.path for request in other.log)
    assert came_from(path) == f"https://drive.google.com/file/d/{DRIVE}/view"


def test_a_small_file_on_google_drive_needs_no_confirmation(google: Server) -> None:
    google.files["/uc"] = File(b"x" * 700, disposition='attachment; filename="a.safetensors"')
    assert fetch(f"https://drive.google.com/uc?id={DRIVE}").read_bytes() == b"x" * 700


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (
            QUOTA,
            "Google Drive's download quota for this file is exceeded, for up to a day. Copy the file",
        ),
        (SIGN_IN, f"{NO_FILE}, which is not shared or no longer exists. Ask the owner to share it"),
        ('<form id="download-form" action="javascript:x"></form>', NO_FILE),
    ],
    ids=["quota", "not shared", "no address"],
)
def test_other_pages_of_google_drive_are_explained(page: str, line: str, google: Server, tmp_path: Path) -> None:
    google.files["/uc"] = File(page.encode(), content_type="text/html; charset=utf-8")
    assert refused(SHARED).startswith(f"https://drive.google.com/file/d/{DRIVE}/view: {line}")
    assert list(tmp_path.rglob("*.part")) == []


def test_a_link_is_downloaded_once(server: Server, data: bytes) -> None:
    server.files["/get"] = File(data, disposition="attachment; filename=a.ckpt")
    path = fetch(f"{server.url}/get?id=5")
    assert (path.name, path.read_bytes()) == ("a.ckpt", data)
    assert fetch(f"{server.url}/get?id=5") == path
    assert len(server.log) == 1
    assert fetch(f"{server.url}/get?id=6") != path
    path.write_bytes(b"cut")
    assert fetch(f"{server.url}/get?id=5").read_bytes() == data, "a damaged file is downloaded again"


def test_secrets_in_a_link_are_sent_but_never_shown_or_stored(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    named = f"{server.url.replace('//', '//me:s3cr3t@')}/model.ckpt?v=1&token=s3cr3t"
    assert refused(named).startswith(f"{server.url}/model.ckpt?v=1: there is no such file on the server (404)")
    server.files["/model.ckpt"] = File(b"x" * 600)
    path = fetch(named)
    assert server.log[-1].path == "/model.ckpt?v=1&token=s3cr3t"
    assert "s3cr3t" not in caplog.text
    assert came_from(path) == f"{server.url}/model.ckpt?v=1"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if b"s3cr3t" in file.read_bytes() or "s3cr3t" in str(file)] == []


def test_mirrors_may_be_of_different_kinds(server: Server, data: bytes, tmp_path: Path, civitai: Server) -> None:
    server.files["/model.ckpt"] = File(data)
    path = fetch(PAGE, mirrors=[f"{server.url}/gone.ckpt", f"{server.url}/model.ckpt"])
    assert path.read_bytes() == data
    (tmp_path / "here.ckpt").write_bytes(data)
    assert fetch(PAGE, mirrors=[str(tmp_path / "here.ckpt")]) == tmp_path / "here.ckpt"


def test_a_local_path_is_returned_unchanged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert fetch("folder") == fetch(tmp_path / "folder") == tmp_path / "folder"
    assert came_from(tmp_path / "folder") == ""
    assert refused("nowhere").startswith(f"{tmp_path}/nowhere: there is no such file or folder. Name a Hub repository")


def test_two_processes_download_the_same_file_once(server: Server, data: bytes, tmp_path: Path) -> None:
    import subprocess
    import sys

    server.files["/model.ckpt"] = File(data, delay=0.02)
    code = "import sys; from fastdb.downloads.fetch import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{server.url}/model.ckpt"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert outputs[0] == outputs[1] != ""
    assert Path(outputs[0].strip()).read_bytes() == data
    assert len(server.log) == 1


def test_progress_shows_bytes_and_speed(
    server: Server, data: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdb.console import terminal

    server.files["/model.ckpt"] = File(data, delay=0.02)
    plain: Callable[..., object] = terminal.open_bar
    monkeypatch.setattr(terminal, "open_bar", lambda **options: plain(**options, miniters=1, disable=False))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with terminal.bar("model.ckpt", "B") as update:
        fetch(f"{server.url}/model.ckpt", progress=update)
    message = capsys.readouterr().err
    assert "model.ckpt: 100%" in message
    assert "1.30M/1.30M" in message
    assert "MB/s" in message
