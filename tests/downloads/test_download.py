"""Downloads from a faulty local server, resumed, verified or refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import shutil
import struct
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastdb.downloads import download as downloads
from fastdb.downloads import http_client
from fastdb.downloads.download import download
from fastdb.downloads.http_client import Remote, safe_name
from fastdb.downloads.model_cache import recall, remember
from fastdb.downloads.tokens import Token, origin
from fastdb.errors import ModelError, StorageError
from tests.downloads.server import File, Server


def at(server: Server, path: str = "/model.ckpt", **known: object) -> Remote:
    return Remote(url=f"{server.url}{path}", shown=f"{server.url}{path.split('?')[0]}", **known)  # type: ignore[arg-type]


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def begun(server: Server, data: bytes, tmp_path: Path) -> Callable[[int], Path]:
    """The folder of a download that was broken off after so many bytes, as its process left it."""

    def begin(count: int) -> Path:
        class Stop(Exception):
            pass

        def stop(done: int, total: int) -> None:
            if done >= count:
                raise Stop

        with pytest.raises(Stop):
            download(at(server), tmp_path / "to", stop)
        server.log.clear()
        return tmp_path / "to"

    server.files["/model.ckpt"] = File(data)
    return begin


def test_a_download_reports_progress_and_leaves_only_the_file(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data)
    calls: list[tuple[int, int]] = []
    path = download(at(server, sha256=hash_of(data)), tmp_path / "to", lambda *call: calls.append(call))
    assert path == tmp_path / "to" / "model.ckpt"
    assert path.read_bytes() == data
    assert left(tmp_path / "to") == ["model.ckpt"]
    assert calls[-1] == (len(data), len(data))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len(calls) > 5


def test_the_final_name_comes_only_after_the_last_byte(begun: Callable[[int], Path], data: bytes) -> None:
    folder = begun(300_000)
    assert left(folder) == ["model.ckpt.part", "model.ckpt.part.json"]
    assert (folder / "model.ckpt.part").read_bytes() == data[: (folder / "model.ckpt.part").stat().st_size]


def test_an_interrupted_download_is_resumed(begun: Callable[[int], Path], server: Server, data: bytes) -> None:
    folder = begun(500_000)
    done = (folder / "model.ckpt.part").stat().st_size
    assert done >= 400_000
    assert download(at(server), folder).read_bytes() == data
    assert [request.headers["range"] for request in server.log] == [f"bytes={done}-"]
    assert server.log[0].headers["if-range"] == '"one"'
    assert server.sent == len(data) - done


@pytest.mark.parametrize("if_range", [True, False], ids=["minds If-Range", "ignores If-Range"])
def test_a_part_is_discarded_if_the_file_changed_on_the_server(
    begun: Callable[[int], Path], server: Server, data: bytes, if_range: bool
) -> None:
    folder = begun(500_000)
    new = bytes(reversed(data))
    server.files["/model.ckpt"] = File(new, etag='"two"', if_range=if_range)
    assert download(at(server), folder).read_bytes() == new


def test_a_date_identifies_the_version_without_a_strong_etag(server: Server, data: bytes, tmp_path: Path) -> None:
    date = "Mon, 02 Nov 2026 10:00:00 GMT"
    server.files["/model.ckpt"] = File(data, etag='W/"weak"', last_modified=date, drop_every=400_000)
    assert download(at(server), tmp_path).read_bytes() == data
    assert [request.headers.get("if-range") for request in server.log] == [None, date, date, date]


def test_without_etag_and_date_another_run_starts_over(
    begun: Callable[[int], Path], server: Server, data: bytes
) -> None:
    server.files["/model.ckpt"].etag = ""
    folder = begun(500_000)
    assert download(at(server), folder).read_bytes() == data
    assert "range" not in server.log[0].headers


def test_a_server_without_ranges_sends_the_whole_file(
    begun: Callable[[int], Path], server: Server, data: bytes
) -> None:
    folder = begun(500_000)
    server.files["/model.ckpt"].ranges = False
    assert download(at(server), folder).read_bytes() == data
    assert len(server.log) == 1


def test_a_connection_that_drops_every_64_kb_is_resumed_each_time(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, drop_every=65536)
    assert download(at(server), tmp_path).read_bytes() == data
    assert len(server.log) == -(-len(data) // 65536)
    assert server.sent == len(data)


def test_a_server_without_ranges_that_drops_is_given_up(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, drop_every=65536, ranges=False)
    with pytest.raises(
        ModelError, match=r"the download stopped after 65\.5 kB of 1\.3 MB: the connection broke, 5 times"
    ):
        download(at(server), tmp_path)
    assert len(server.log) == 6


def test_a_chunked_body_is_resumed(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, chunked=True, drop_every=500_000)
    assert download(at(server), tmp_path).read_bytes() == data
    assert len(server.log) == 3


def test_a_length_that_is_too_large_is_refused(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, announced=len(data) + 1000)
    message = f"the server first announced {len(data) + 1000} bytes and then {len(data)}"
    with pytest.raises(ModelError, match=message):
        download(at(server), tmp_path)
    assert left(tmp_path) == []
    assert len(server.log) == 2


def test_a_server_that_always_stops_at_the_same_byte_is_given_up(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, drop_every=500_000, chunked=True, etag="")
    server.files["/model.ckpt"].ranges = False
    with pytest.raises(ModelError) as caught:
        download(at(server), tmp_path)
    assert "/model.ckpt: the download stopped after 500 kB: the connection broke, 5 times" in str(caught.value)
    assert str(caught.value).endswith("Run the same command again; it resumes if the server supports it.")
    assert left(tmp_path) == ["model.ckpt.part", "model.ckpt.part.json"]


def test_a_length_that_differs_from_the_known_size_is_refused(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, announced=len(data) - 1000)
    with pytest.raises(ModelError, match=rf"the server announced {len(data) - 1000} bytes \(expected {len(data)}\)"):
        download(at(server, size=len(data)), tmp_path)
    assert left(tmp_path) == []


def test_more_bytes_than_expected_are_refused(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, chunked=True)
    with pytest.raises(ModelError, match=r"the server sent more bytes than it announced \(expected 70000\)"):
        download(at(server, size=70_000), tmp_path)
    assert left(tmp_path) == []


def test_a_truncated_safetensors_file_is_detected(server: Server, tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [5000], "data_offsets": [0, 5000]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(5000)
    server.files["/a.safetensors"] = File(whole[:-1])
    with pytest.raises(ModelError, match=f"has {len(whole) - 1} bytes, but its header describes {len(whole)}"):
        download(at(server, "/a.safetensors"), tmp_path)
    server.files["/a.safetensors"] = File(whole)
    assert download(at(server, "/a.safetensors"), tmp_path).read_bytes() == whole


def test_an_empty_file_is_refused_unless_expected(server: Server, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(b"")
    with pytest.raises(ModelError, match="the downloaded file is empty"):
        download(at(server), tmp_path)
    assert download(at(server, size=0), tmp_path).read_bytes() == b"", "unless it is known to be so"


def test_a_checksum_mismatch_is_refused(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data)
    message = "the downloaded file does not match the expected checksum"
    with pytest.raises(ModelError, match=rf"{message} \(SHA-256 {hash_of(data)} instead of {'0' * 64}\)\."):
        download(at(server, sha256="0" * 64), tmp_path)
    assert left(tmp_path) == []
    assert len(server.log) == 1


def test_a_damaged_part_is_downloaded_again(begun: Callable[[int], Path], server: Server, data: bytes) -> None:
    folder = begun(500_000)
    with (folder / "model.ckpt.part").open("r+b") as stream:
        stream.write(b"spoilt")
    assert download(at(server, sha256=hash_of(data)), folder).read_bytes() == data
    assert len(server.log) == 2


WEB_PAGES = {
    "as it says": (b"<!DOCTYPE html><html><title>Sign in</title></html>", "text/html; charset=utf-8"),
    "in disguise": (b"\n  <html lang=en><body>Sign in</body></html>" + b" " * 5000, "application/octet-stream"),
    "without a head": (b"<div>Please wait</div>", "text/html"),
}


@pytest.mark.parametrize("kind", WEB_PAGES)
def test_a_web_page_is_refused_and_the_part_is_kept(kind: str, begun: Callable[[int], Path], server: Server) -> None:
    folder = begun(500_000)
    done = (folder / "model.ckpt.part").stat().st_size
    page, content_type = WEB_PAGES[kind]
    server.files["/model.ckpt"] = File(page, etag="", content_type=content_type)
    with pytest.raises(ModelError, match=r"/model\.ckpt: the server returned a web page instead of a model file\."):
        download(at(server), folder)
    assert (folder / "model.ckpt.part").stat().st_size == done, "a gateway's page costs nothing of what is here"


REFUSALS = {
    401: "the server requires a login (401). Go there.",
    403: "the server requires a login (403). Go there.",
    404: "there is no such file on the server (404). Check the spelling, and check whether the file was",
    410: "there is no such file on the server (410).",
    418: "the server answered 418 instead of sending the file. Open the link in a browser",
    451: "the file is not available in your country (451).",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_fails_at_once_with_the_remedy(status: int, server: Server, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(failing=[(status, {})] * 3)
    with pytest.raises(ModelError) as caught:
        download(at(server, gate="Go there."), tmp_path)
    assert str(caught.value).startswith(f"{server.url}/model.ckpt: {REFUSALS[status]}")
    assert len(server.log) == 1


def test_a_rejected_token_is_reported(server: Server, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(token="right")
    with pytest.raises(ModelError, match=r"\(403\); the token is invalid or has no access to this model"):
        download(at(server, token=Token("wr0ng-one", origin(server.url))), tmp_path)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_temporary_failures_are_retried(status: int, server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, failing=[(status, {})] * 4)
    assert download(at(server), tmp_path).read_bytes() == data


def test_a_permanent_failure_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(failing=[(503, {})] * 50)
    with pytest.raises(ModelError, match=r"the server answered 503, 5 times in a row\. Check the network"):
        download(at(server), tmp_path)
    assert len(server.log) == 5


def test_waits_double_and_retry_after_is_respected(
    server: Server, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(http_client, "FIRST_WAIT", 1.0)
    # Threads of other parts, which sleep too, keep the real one.
    own_time = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: waits.append(seconds) if seconds else None})
    monkeypatch.setattr(http_client, "time", own_time)
    server.files["/model.ckpt"] = File(data, failing=[(500, {}), (500, {}), (429, {"Retry-After": "7"}), (500, {})])
    download(at(server), tmp_path)
    assert waits == [1.0, 2.0, 7.0, 8.0]
    server.files["/model.ckpt"] = File(data, failing=[(429, {"Retry-After": "3600"})])
    with pytest.raises(ModelError, match=r"the server answered 429 and asked to wait 3600 s\. Run the same"):
        download(at(server), tmp_path)


def test_retry_after_may_be_a_date(server: Server, data: bytes, tmp_path: Path) -> None:
    for value in ("Mon, 02 Nov 2020 10:00:00 GMT", "soon", "", "-5"):
        server.files["/model.ckpt"] = File(data, failing=[(503, {"Retry-After": value})])
        assert download(at(server), tmp_path / (value or "none")).read_bytes() == data
    server.files["/model.ckpt"] = File(data, failing=[(503, {"Retry-After": "Mon, 02 Nov 2099 10:00:00 GMT"})])
    with pytest.raises(ModelError, match=r"the server answered 503 and asked to wait \d{9,} s\."):
        download(at(server), tmp_path)


def test_an_unreachable_server_is_reported(server: Server, tmp_path: Path) -> None:
    with Server().running() as gone:
        remote = at(gone)
    with pytest.raises(ModelError, match=r"/model\.ckpt: the server could not be reached, 5 times in a row\. Check"):
        download(remote, tmp_path)


def test_a_silent_server_is_given_up(
    server: Server, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdb.downloads.http_client.TIMEOUT", 0.1)
    monkeypatch.setattr(http_client, "TRIES", 2)
    server.files["/model.ckpt"] = File(data, delay=0.5)
    with pytest.raises(ModelError, match="the server sent nothing for"):
        download(at(server), tmp_path)


def test_a_slow_server_is_waited_for(server: Server, data: bytes, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(data, delay=0.02)
    assert download(at(server), tmp_path).read_bytes() == data
    assert len(server.log) == 1


def test_too_little_disk_space_is_reported_before_the_first_byte(
    server: Server, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, downloads.SPARE + 1000))
    server.files["/model.ckpt"] = File(data)
    with pytest.raises(StorageError) as caught:
        download(at(server), tmp_path)
    assert f" needs 33.3 MB on the disk of {tmp_path}, but only 32.0 MB are free. Free some" in str(caught.value)
    assert (tmp_path / "model.ckpt.part").exists() is False


def test_a_part_is_kept_if_the_disk_fills_up(server: Server, data: bytes, small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    server.files["/model.ckpt"] = File(data, chunked=True)
    with pytest.raises(StorageError, match=r"model\.ckpt\.part: the disk is full"):
        download(at(server), folder)
    done = (folder / "model.ckpt.part").stat().st_size
    assert done > 500_000
    assert (folder / "model.ckpt.part").read_bytes() == data[:done]


def test_compressed_bodies_are_decoded(server: Server, data: bytes, tmp_path: Path) -> None:
    text = data.hex().encode()
    server.files["/model.ckpt"] = File(gzip.compress(text))
    server.files["/model.ckpt"].content_type = "text/plain\r\nContent-Encoding: gzip"
    assert download(at(server), tmp_path).read_bytes() == text


def test_redirects_that_loop_or_leave_http_are_refused(
    server: Server, other: Server, data: bytes, tmp_path: Path
) -> None:
    other.files["/b.ckpt"] = File(data)
    server.files["/a"] = File(location="/a2")
    server.files["/a2"] = File(location=f"{other.url}/b.ckpt")
    assert download(at(server, "/a"), tmp_path).read_bytes() == data
    server.files["/a2"] = File(location="/a")
    with pytest.raises(ModelError, match="redirects more than 10 times"):
        download(at(server, "/a"), tmp_path)
    for address in ("file:///etc/hosts", "gopher://x/"):
        server.files["/a"] = File(location=address)
        with pytest.raises(ModelError, match="redirects to an invalid address"):
            download(at(server, "/a"), tmp_path)


NAMES = [
    ('attachment; filename="Dream Shaper.safetensors"', "Dream Shaper.safetensors"),
    ("attachment; filename=plain.ckpt", "plain.ckpt"),
    ("attachment; filename=\"a.ckpt\"; filename*=UTF-8''%E6%A2%A6.ckpt", "梦.ckpt"),
    ('attachment; filename="../../etc/passwd.ckpt"', "passwd.ckpt"),
    ('attachment; filename="..\\\\..\\\\boot.ckpt"', "boot.ckpt"),
    ("attachment; filename*=UTF-8''..%2F..%2Fx.ckpt", "x.ckpt"),
    ("attachment; filename*=UTF-8''a%0D%0Ab%00.ckpt", "ab.ckpt"),
    ('attachment; filename=".."', "model.ckpt"),
    ('attachment; filename=".hidden.ckpt"', "hidden.ckpt"),
    ('attachment; filename="CON.ckpt"', "_CON.ckpt"),
    ("inline", "model.ckpt"),
    ("", "model.ckpt"),
]


@pytest.mark.parametrize(("header", "name"), NAMES, ids=[header or "nothing" for header, _ in NAMES])
def test_the_server_chooses_the_name_but_not_the_folder(header: str, name: str, server: Server, tmp_path: Path) -> None:
    server.files["/model.ckpt"] = File(b"x" * 600, disposition=header)
    assert download(at(server), tmp_path / "to") == tmp_path / "to" / name
    assert left(tmp_path / "to") == [name]
    assert left(tmp_path) == ["to"]


@pytest.mark.parametrize(
    "long", ["a" * 1000 + ".safetensors", "é" * 500 + ".ckpt", "x." + "y" * 1000, "/" * 50, "\u202e"]
)
def test_every_name_is_shortened_to_fit(long: str, tmp_path: Path) -> None:
    name = safe_name(long)
    assert len(name.encode()) <= 160
    if name:
        (tmp_path / f"{name}.part.json").touch()
    if long.endswith((".safetensors", ".ckpt")):
        assert name.endswith((".safetensors", ".ckpt"))


def test_a_damaged_record_of_a_part_is_ignored(begun: Callable[[int], Path], server: Server, data: bytes) -> None:
    for number, text in enumerate(["", "[]", "{", '{"name": 5}', "\x00"]):
        folder = begun(500_000)
        (folder / "model.ckpt.part.json").write_text(text)
        assert download(at(server), folder).read_bytes() == data, number
        (folder / "model.ckpt").unlink()


def test_a_failing_disk_is_reported(
    server: Server, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    server.files["/model.ckpt"] = File(data)
    monkeypatch.setattr("fastdb.downloads.download.flush", fails)
    with pytest.raises(StorageError, match="the disk does not answer"):
        download(at(server), tmp_path)
    assert not (tmp_path / "model.ckpt").exists()


def test_a_token_goes_to_its_own_origin_only(
    server: Server, other: Server, data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = Token("s3cr3t-token", origin(server.url))
    server.files["/model.ckpt"] = File(location=f"{other.url}/b", token="s3cr3t-token")
    other.files["/b"] = File(location=f"{server.url.replace('127.0.0.1', 'localhost')}/c")
    server.files["/c"] = File(data, drop_every=600_000)
    assert download(at(server, token=token), tmp_path).read_bytes() == data
    assert {request.headers.get("authorization") for request in server.asked("/model.ckpt")} == {"Bearer s3cr3t-token"}
    assert all("authorization" not in request.headers for request in [*server.asked("/c"), *other.log])
    assert len(server.asked("/c")) == 3
    assert "s3cr3t" not in other.seen() + caplog.text + repr(token)
    assert token.headers(server.url.replace("http:", "https:")) == {}


def test_a_crash_at_any_point_leaves_the_whole_file_or_none(
    cut_everywhere: Callable[[str], list[Path]], server: Server, data: bytes
) -> None:
    server.files["/model.ckpt"] = File(data[:200_000])
    folders = cut_everywhere(f"""
from fastdb.downloads.download import download
from fastdb.downloads.http_client import Remote
from fastdb.downloads.model_cache import recall, remember
remote = Remote(url="{server.url}/model.ckpt", shown="{server.url}/model.ckpt")
download(remote, Path(sys.argv[1]).parent / "warm")  # so that nothing has to be imported under the knife
def prepare(folder):
    pass
def work(folder):
    path = download(remote, folder / "to")
    remember(folder / "to", "it", {{path.name: path}})
""")
    assert 10 <= len(folders) <= 60, "each touch of the file system, and no import"
    for folder in folders:
        whole = folder / "to" / "model.ckpt"
        assert not whole.exists() or whole.read_bytes() == data[:200_000]
        assert recall(folder / "to") is None or whole.exists()
        path = download(at(server), folder / "to")
        remember(folder / "to", "it", {path.name: path})
        assert left(folder / "to") == [".fetched.json", "model.ckpt"]
