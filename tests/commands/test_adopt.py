"""Adoption of shared sessions after interruptions, with links and photos in zips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fastdb import interactive
from fastdb.commands import sessions, sharing, space
from fastdb.errors import ConfigError, ModelError, SessionError
from fastdb.runtime.paths import cache_folder
from fastdb.sessions.session import Session
from fastdb.sharing.transfer import unfinished_sessions
from tests.downloads.server import File, Server

TWO_DAYS = 2 * 86400.0


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as server:
        yield server


@pytest.fixture
def zipped(photos: list[Path], tmp_path: Path) -> Path:
    session = sessions.new("cat", "mini", [photos[0]], root=tmp_path / "theirs")
    return sharing.share(session, tmp_path / "cat.zip")


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def age(folder: Path, seconds: float) -> None:
    """Make a folder and all in it so much older."""
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then), follow_symlinks=False)


KILLED = """
import os, signal, sys
from fastdb.commands import sharing
from fastdb.sharing import incoming
sharing.settle = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
sharing.adopt(sys.argv[1])
"""


def killed(path: Path, sessions: Path) -> Path:
    """An adoption that was really cut off; what it left."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [left] = [one for one in sessions.iterdir() if one.name.startswith(".")]
    return left


def test_what_a_killed_adoption_left_is_told_and_removed_after_a_day(
    zipped: Path, sessions_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That of other tests has work of sessions that are gone.
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    left = killed(zipped, sessions_folder)
    interactive.adopt(zipped)
    asked: list[space.Removal] = []

    def yes(removal: space.Removal) -> bool:
        asked.append(removal)
        return True

    assert unfinished_sessions(sessions_folder) == []
    assert space.free_unfinished(confirm=yes) == 0, "it may be on its way, here or on another machine"
    age(left, TWO_DAYS)
    (left / "session.yaml").touch()
    assert space.free_unfinished(confirm=yes) == 0, "something in it is new"
    assert asked == []
    age(left, TWO_DAYS)
    assert [name for name, _ in space.space().unfinished] == [left.name]
    assert space.free_unfinished(confirm=lambda removal: False) == 0
    assert left.is_dir()
    assert space.free_unfinished(confirm=yes) > 1000
    assert [removal.subject for removal in asked] == ["unfinished sessions"]
    assert listed(sessions_folder) == ["cat"]
    assert Session.open("cat").instance_images.is_dir()


def test_nothing_else_is_taken_for_such_a_rest(sessions_folder: Path) -> None:
    names = [".hidden", ".cat", ".cat.1234567", ".cat.123456789", ".cat.ABCDEF01", ".a b.12345678", "cat.12345678",
             ".Trash-1000", "..12345678"]  # fmt: skip
    for name in names:
        (sessions_folder / name).mkdir(parents=True)
    (sessions_folder / ".file.12345678").touch()
    (sessions_folder / "elsewhere").mkdir()
    (sessions_folder / ".link.12345678").symlink_to(sessions_folder / "elsewhere")
    (sessions_folder / ".cat.0123abcd").mkdir()
    age(sessions_folder, TWO_DAYS)
    assert [path.name for path in unfinished_sessions(sessions_folder)] == [".cat.0123abcd"]


def test_a_link_to_a_zip_is_adopted(zipped: Path, server: Server, sessions_folder: Path) -> None:
    server.files["/some/cat.zip"] = File(zipped.read_bytes())
    session = sharing.adopt(f"{server.url}/some/cat.zip")
    assert session.name == "cat"
    assert len(listed(session.originals)) == 2
    assert listed(cache_folder() / "coming") == []


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"<!doctype html><html>sign in</html>", ModelError, "web page"),
        (b"\x00" * 5000, SessionError, "truncated or not a zip"),
    ],
)
def test_a_link_to_something_else_makes_nothing(
    body: bytes, kind: type[Exception], said: str, server: Server, sessions_folder: Path
) -> None:
    server.files["/cat.zip"] = File(body)
    with pytest.raises(kind, match=said):
        sharing.adopt(f"{server.url}/cat.zip")
    with pytest.raises(ModelError):
        sharing.adopt(f"{server.url}/none.zip")
    assert listed(sessions_folder) == []


def test_a_link_to_too_much_is_cut_off(zipped: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/cat.zip"] = File(zipped.read_bytes())
    monkeypatch.setattr(sharing, "MOST_BYTES", 1000)
    with pytest.raises(SessionError, match="is larger than any session"):
        sharing.adopt(f"{server.url}/cat.zip")


def test_the_link_of_a_model_is_no_session() -> None:
    with pytest.raises(SessionError, match="link of a model"):
        sharing.adopt("https://huggingface.co/some/model")


def pack(path: Path, files: dict[str, Path | bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())


@pytest.mark.parametrize("inside", ["", "instance_images/"])
def test_a_classic_session_with_zips_alone_is_adopted(inside: str, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for number, photo in enumerate(photos[:2], start=1):
        Image.open(photo).convert("RGB").resize((512, 512)).save(tmp_path / f"sks ({number}).jpg")
    made = {f"{inside}sks ({number}).jpg": tmp_path / f"sks ({number}).jpg" for number in (1, 2)}
    pack(folder / "instance_images.zip", {**made})
    pack(folder / "captions.zip", {"sks (1).txt": b"on a chair"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="no base model was chosen"):
        sharing.adopt(folder)
    session = sharing.adopt(folder, base="mini")
    assert {"sks (1).jpg", "sks (2).jpg"} <= set(listed(session.originals))
    assert (session.captions / "sks (1).txt").read_text() == "on a chair\n"
    assert [name for name in listed(session.path) if name.startswith(".")] == [".files.json"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    by_zip = sharing.adopt(
        Path(shutil.make_archive(str(tmp_path / "whole"), "zip", tmp_path, "old")), "again", base="mini"
    )
    assert listed(by_zip.originals) == listed(session.originals)


def test_a_hostile_zip_of_photos_is_refused(photos: list[Path], tmp_path: Path, sessions_folder: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    pack(folder / "instance_images.zip", {"../../escaped.png": photos[0]})
    with pytest.raises(SessionError, match="leads out of the session"):
        sharing.adopt(folder, base="mini")
    assert listed(sessions_folder) == []
    assert not list(tmp_path.rglob("escaped.png"))
