"""Untrusted archives are extracted safely or refused."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdb.commands import sharing
from fastdb.errors import FastDBError, SessionError, SessionExists
from fastdb.formats.zip_directory import END, END64, LOCATOR64
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.sharing import untrusted_zip as archives
from fastdb.storage.safe_names import name_fault

Entry = tuple[str | zipfile.ZipInfo, bytes]
YAML = b"format: 1\nname: cup\ncreated: '2026-01-01T00:00:00+00:00'\nbase_model: {folder: mini, fingerprint: '0'}\n"
CUP: list[Entry] = [
    ("cup/session.yaml", YAML),
    ("cup/captions/a.txt", b"on a table"),
    ("cup/originals/a.jpg", b"photo"),
]


def zipped(entries: list[Entry], packing: int = zipfile.ZIP_STORED, **more: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing, **more) as archive:  # type: ignore[arg-type]
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def with_member(name: str, data: bytes = b"x") -> Callable[[], bytes]:
    return lambda: zipped([*CUP, (name, data)])


def renamed(old: str, new: str) -> Callable[[], bytes]:
    """A member whose name zipfile would not write: of the same length, put in afterwards, in both its places."""
    assert len(old) == len(new)
    return lambda: zipped([*CUP, (old, b"x")]).replace(old.encode(), new.encode())


def special(mode: int) -> bytes:
    entry = zipfile.ZipInfo("cup/captions/link.txt")
    entry.external_attr = (mode | 0o777) << 16
    return zipped([*CUP, (entry, b"/etc/passwd")])


def flagged(flag: int) -> bytes:
    data = bytearray(zipped(CUP))
    place = data.index(b"PK\x01\x02")
    local, central = struct.unpack_from("<H", data, 6)[0], struct.unpack_from("<H", data, place + 8)[0]
    struct.pack_into("<H", data, 6, local | flag)
    struct.pack_into("<H", data, place + 8, central | flag)
    return bytes(data)


def with_sizes(unpacked: int, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The first member says another size than it has."""
    data = bytearray(zipped(CUP, packing))
    struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, unpacked)
    return bytes(data)


def with_wrong_crc() -> bytes:
    data = zipped(CUP)
    return data.replace(b"on a table", b"on a fable")


def broken_stream() -> bytes:
    chance = random.Random(0)
    text = bytes(chance.randrange(97, 110) for _ in range(4000))
    data = bytearray(zipped([*CUP, ("cup/captions/b.txt", text)], zipfile.ZIP_DEFLATED))
    place = data.index(b"cup/captions/b.txt") + 40
    data[place : place + 400] = bytes(400)
    assert len(data) > place + 1000
    return bytes(data)


def overlapping() -> bytes:
    """Two members of one size and content, the second of them pointing at the first."""
    data = bytearray(zipped([*CUP, ("cup/captions/b.txt", b"x"), ("cup/captions/c.txt", b"x")]))
    first = data.index(b"cup/captions/b.txt") - 30
    last = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, last + 42, first)
    return bytes(data)


def with_count(count: int) -> bytes:
    data = bytearray(zipped(CUP))
    struct.pack_into("<HH", data, len(data) - 14, count, count)
    return bytes(data)


def with_manifest(files: object, **more: object) -> bytes:
    text = json.dumps({"format": 1, "files": files, **more})
    return zipped([*CUP, ("cup/MANIFEST.json", text.encode())])


def facts(names: list[Entry]) -> dict[str, dict[str, object]]:
    import hashlib

    return {
        str(name).removeprefix("cup/"): {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in names
    }


def without(name: str) -> list[Entry]:
    return [entry for entry in CUP if entry[0] != name]


def alias_bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "format: 1", "name: *a8"]).encode()


def in_place_of_yaml(data: bytes) -> Callable[[], bytes]:
    return lambda: zipped([("cup/session.yaml", data), *CUP[1:]])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up and out": (with_member("../evil.txt"), "'../evil.txt' leads out of the session"),
    "down and out": (with_member("cup/captions/../../../evil.txt"), "leads out of the session"),
    "absolute": (with_member("/tmp/evil.txt"), "is an absolute path"),
    "drive letter": (with_member("C:/evil.txt"), "is an absolute path"),
    "drive letter alone": (with_member("c:evil.txt"), "is an absolute path"),
    "backslashes": (with_member("cup\\..\\..\\evil.txt"), "has a backslash in its name"),
    "an unc path": (with_member("\\\\host\\share\\evil.txt"), "has a backslash in its name"),
    "a dot": (with_member("cup/./captions/b.txt"), "has an empty part in its name"),
    "two slashes": (with_member("cup//captions/b.txt"), "has an empty part in its name"),
    "a zero byte": (
        renamed("cup/captions/b_.txt", "cup/captions/b\0.txt"),
        "that Windows or Google Drive does not accept",
    ),
    "a line break": (with_member("cup/captions/b\nerror: x.txt"), r"b\nerror: x.txt' has a name that Windows"),
    "an escape": (with_member("cup/captions/\x1b[2J.txt"), r"'cup/captions/\x1b[2J.txt' has a name that Windows"),
    "a colon": (with_member("cup/captions/b.txt:stream"), "Windows or Google Drive does not accept"),
    "a star": (with_member("cup/captions/b*.txt"), "Windows or Google Drive does not accept"),
    "a reserved name": (with_member("cup/captions/NUL.txt"), "Windows or Google Drive does not accept"),
    "a reserved folder": (with_member("cup/aux/b.txt"), "Windows or Google Drive does not accept"),
    "a dot at the end": (with_member("cup/captions./b.txt"), "Windows or Google Drive does not accept"),
    "a space at the end": (with_member("cup/captions/b.txt "), "Windows or Google Drive does not accept"),
    "too long": (with_member(f"cup/captions/{'b' * 250}.txt"), "has a name that is too long"),
    "too deep": (with_member("cup/" + "b/" * 40 + "b.txt"), "lies more than 8 folders deep"),
    "a link": (lambda: special(stat.S_IFLNK), "is a link"),
    "a device": (lambda: special(stat.S_IFCHR), "is not a regular file"),
    "a pipe": (lambda: special(stat.S_IFIFO), "is not a regular file"),
    "a socket": (lambda: special(stat.S_IFSOCK), "is not a regular file"),
    "encrypted": (lambda: flagged(0x1), "is encrypted"),
    "strongly encrypted": (lambda: flagged(0x41), "is encrypted"),
    "packed as lzma": (lambda: zipped(CUP, zipfile.ZIP_LZMA), "uses an unsupported compression method"),
    "packed as bzip2": (lambda: zipped(CUP, zipfile.ZIP_BZIP2), "uses an unsupported compression method"),
    "a bomb": (
        lambda: zipped([*CUP, ("cup/logs/0.txt", bytes(20_000_000))], zipfile.ZIP_DEFLATED),
        "would extract to 20 MB from 0.0 MB, like a zip bomb",
    ),
    "says more than it holds": (lambda: with_sizes(1000), "is smaller than its directory entry"),
    "says less than it holds": (lambda: with_sizes(20), "is damaged: invalid checksum or compressed data"),
    "two sizes": (lambda: with_sizes(4, zipfile.ZIP_STORED), "has contradictory sizes"),
    "wrong checksum": (with_wrong_crc, "'cup/captions/a.txt' is damaged: invalid checksum or compressed data"),
    "broken stream": (broken_stream, "'cup/captions/b.txt' is damaged: invalid checksum or compressed data"),
    "the same name in another case": (with_member("cup/Captions/A.TXT"), "exists twice"),
    "the same name composed otherwise": (
        lambda: zipped([*CUP, ("cup/captions/\xfc.txt", b"1"), ("cup/captions/u\u0308.txt", b"2")]),
        "exists twice",
    ),
    "a file and a folder": (with_member("cup/captions/a.txt/b.txt"), "has a file as its parent folder"),
    "a folder with bytes": (
        renamed("cup/captions/b_", "cup/captions/b/"),
        "'cup/captions/b/' is a folder with data",
    ),
    "a folder that is a file": (lambda: zipped([CUP[0], ("cup/captions", b"x")]), "its 'captions' is not a folder"),
    "overlapping": (overlapping, "overlaps 'cup/captions/b.txt'"),
    "other name in its own header": (
        lambda: zipped(CUP).replace(b"cup/captions/a.txt", b"cup/captions/b.txt", 1),
        "'cup/captions/a.txt' is damaged",
    ),
    "cut short": (lambda: zipped(CUP)[:-60], "truncated or not a zip"),
    "cut in the middle": (lambda: zipped(CUP)[:100], "truncated or not a zip"),
    "nothing": (lambda: b"", "truncated or not a zip"),
    "no zip": (lambda: b"\x1f\x8b" + bytes(2000), "truncated or not a zip"),
    "goes on behind its end": (lambda: zipped(CUP) + b"more", "trailing data after the archive"),
    "something before it": (lambda: b"#!/bin/sh\n" + zipped(CUP), "invalid offset of the zip directory"),
    "in volumes": (lambda: with_count(3)[:-18] + b"\1\0\1\0" + with_count(3)[-14:], "multi-volume archive"),
    "lists fewer than it has": (lambda: with_count(2), "its directory lists 3 members instead of 2"),
    "lists more than it has": (lambda: with_count(5), "its directory lists 3 members instead of 5"),
    "lists far too many": (lambda: with_count(60_000), "it has 60000 members"),
    "has far too many": (
        lambda: zipped([*CUP, *((f"cup/logs/{number}", b"") for number in range(20_000))]),
        "it has 20003 members; a session has at most 20000",
    ),
    "a broken directory": (lambda: zipped(CUP).replace(b"PK\x01\x02", b"PK\x01\x03"), "its directory cannot be read"),
    "empty": (lambda: zipped([]), "contains no session"),
    "no session": (lambda: zipped(CUP[1:]), "contains no session"),
    "a session too far down": (lambda: zipped([(f"a/b/{name}", data) for name, data in CUP]), "contains no session"),
    "two sessions": (lambda: zipped([*CUP, ("mug/session.yaml", YAML)]), "contains 2 sessions ('cup', 'mug')"),
    "yaml that is none": (in_place_of_yaml(b"a: [b\nc: }"), "its session.yaml cannot be used: cannot be read as YAML"),
    "yaml of aliases": (lambda: in_place_of_yaml(alias_bomb())(), "cannot be read as YAML (line 2)"),
    "yaml that nests": (in_place_of_yaml(b"[" * 50_000), "its session.yaml cannot be used"),
    "yaml that calls": (
        in_place_of_yaml(b"format: !!python/object/apply:os.system ['touch evil.txt']\n"),
        "cannot be read as YAML",
    ),
    "yaml of another format": (in_place_of_yaml(YAML.replace(b"format: 1", b"format: 9")), "has format 9"),
    "yaml of unknown settings": (in_place_of_yaml(YAML + b"evil: 1\n"), "there is no setting evil"),
    "yaml with a long value": (in_place_of_yaml(YAML + b"runs: " + b"y" * 5000), "..."),
    "yaml that is long": (in_place_of_yaml(YAML + b"#" * 2_000_000), "is too large for a session.yaml"),
    "yaml that is binary": (in_place_of_yaml(b"\x80\xff\0"), "its session.yaml cannot be used"),
    "yaml that is a folder": (lambda: zipped([("cup/session.yaml/a", b""), *CUP[1:]]), "contains no session"),
    "unlike its manifest": (
        lambda: with_manifest({**facts(CUP), "captions/a.txt": {"bytes": 10, "sha256": "0" * 64}}),
        "does not match its manifest: a.txt has changed",
    ),
    "less than its manifest": (
        lambda: with_manifest({**facts(CUP), "captions/b.txt": {"bytes": 1, "sha256": ""}}),
        "'captions/b.txt' is listed in its manifest but missing",
    ),
    "more than its manifest": (
        lambda: with_manifest(facts(without("cup/originals/a.jpg"))),
        "'originals/a.jpg' is not listed in its manifest",
    ),
    "a manifest that looks elsewhere": (
        lambda: with_manifest({**facts(CUP), "../../../../etc/passwd": {"bytes": 1, "sha256": ""}}),
        "is listed in its manifest but missing",
    ),
    "a manifest of another format": (lambda: with_manifest(facts(CUP), format=7), "its manifest has format 7"),
    "a manifest that is none": (
        lambda: zipped([*CUP, ("cup/MANIFEST.json", b"[" * 100_000)]),
        "its manifest cannot be read",
    ),
    "a manifest of something else": (lambda: with_manifest(["a"]), "is not listed in its manifest"),
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture
def zip_of(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "in" / "cup.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_archive_of_a_session_does_is_refused_in_one_line(
    case: str, zip_of: Callable[[bytes], Path], tmp_path: Path, sessions_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = HOSTILE[case]
    path = zip_of(make())
    sessions_folder.mkdir()
    Session.create("mug", base_model=BaseModelRecord(folder="mini", fingerprint="0"))
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(FastDBError) as caught:
        sharing.adopt(path)
    assert said in str(caught.value)
    assert isinstance(caught.value.fix, str)
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert everything(tmp_path) == before
    assert not Path("/tmp/evil.txt").exists()


def test_the_corpus_is_large() -> None:
    assert len(HOSTILE) + len(ODD) >= 70


def mac(entries: list[Entry]) -> bytes:
    """As macOS zips: names in UTF-8 that do not say so, and its own files beside."""
    data = zipped([*entries, ("cup/captions/\xfc.txt", b"1"), ("__MACOSX/cup/._session.yaml", b"\0\5\x16\7")])
    return zipped_flags_off(data)


def zipped_flags_off(data: bytes) -> bytes:
    """Without the flag that names are in UTF-8."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.find(signature)
        while place >= 0:
            flags = struct.unpack_from("<H", changed, place + offset)[0]
            struct.pack_into("<H", changed, place + offset, flags & ~0x800)
            place = changed.find(signature, place + 4)
    return bytes(changed)


def deeper(*folders: str) -> bytes:
    return zipped([("/".join([*folders, *str(name).split("/")[1:]]), data) for name, data in CUP])


ODD: dict[str, tuple[Callable[[], bytes], str, set[str]]] = {
    "as shared": (lambda: with_manifest(facts(CUP)), "cup", set()),
    "no manifest": (lambda: zipped(CUP), "cup", set()),
    "at the top": (lambda: zipped([(str(name).removeprefix("cup/"), data) for name, data in CUP]), "cup", set()),
    "one folder down": (lambda: deeper("dog"), "dog", set()),
    "two folders down": (lambda: deeper("Sessions", "dog"), "dog", set()),
    "a name to be mended": (lambda: deeper("my dog (2)"), "my_dog_2", set()),
    "packed": (lambda: zipped(CUP, zipfile.ZIP_DEFLATED), "cup", set()),
    "with a comment": (lambda: zipped(CUP)[:-2] + b"\5\0hello", "cup", set()),
    "with folders as members": (
        lambda: zipped([("cup/", b""), ("cup/captions/", b""), ("cup/evaluation/", b""), *CUP]),
        "cup",
        set(),
    ),
    "from macOS": (lambda: mac(CUP), "cup", {"captions/\xfc.txt"}),
    "from Windows": (
        lambda: zipped_flags_off(zipped([*CUP, ("cup/captions/dog.txt", b"1"), ("cup/Thumbs.db", b"1")])),
        "cup",
        {"captions/dog.txt"},
    ),
    "hidden files": (lambda: zipped([*CUP, ("cup/.git/config", b"1"), ("cup/.DS_Store", b"1")]), "cup", set()),
    "things beside the session": (lambda: zipped([*CUP, ("README", b"1"), ("a/b/c.exe", b"1")]), "cup", set()),
    "executable": (lambda: special(stat.S_IFREG), "cup", {"captions/link.txt"}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_only_odd_is_taken(case: str, zip_of: Callable[[bytes], Path], sessions_folder: Path) -> None:
    make, name, more = ODD[case]
    session = sharing.adopt(zip_of(make()))
    assert (session.path, session.record.name) == (sessions_folder / name, name)
    files = {path.relative_to(session.path).as_posix() for path in session.path.rglob("*") if path.is_file()}
    assert {file for file in files if not file.endswith("README.txt")} == {
        "session.yaml",
        ".files.json",
        "captions/a.txt",
        "originals/a.jpg",
        *more,
    }
    assert (session.captions / "a.txt").read_bytes() == b"on a table"
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o111 == 0 for path in session.path.rglob("*") if path.is_file())
    assert session.checkpoints.is_dir()
    assert os.listdir(sessions_folder) == [name]


def test_a_member_may_not_outgrow_its_entry(zip_of: Callable[[bytes], Path], tmp_path: Path) -> None:
    """Whatever `zipfile` hands out: the count is ours."""
    with archives.opened(zip_of(zipped(CUP))) as archive:
        member = next(member for member in archive.members if member.name == "cup/captions/a.txt")
        member.info.file_size = 4
        with pytest.raises(SessionError, match=r"damaged|larger than the archive says"):
            archive.unpack([member], tmp_path, "cup/")


def test_the_whole_may_not_be_larger_than_any_session(
    zip_of: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch, sessions_folder: Path
) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 100)
    with pytest.raises(SessionError, match="more than any session"):
        sharing.adopt(zip_of(zipped(CUP)))
    assert not sessions_folder.exists()


def test_what_does_not_fit_on_the_disk_is_not_begun(
    zip_of: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch, sessions_folder: Path
) -> None:
    usage = shutil.disk_usage(sessions_folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50))
    with pytest.raises(FastDBError, match="GB are free on"):
        sharing.adopt(zip_of(zipped(CUP)))
    assert os.listdir(sessions_folder) == []


def test_a_disk_that_fills_up_leaves_nothing(
    zip_of: Callable[[bytes], Path], small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("1m")
    data = zipped([*CUP, ("cup/originals/b.jpg", os.urandom(2_000_000))])
    path = zip_of(data)
    monkeypatch.setattr(archives.Archive, "_check_room", lambda self, folder, total: None)
    with pytest.raises(FastDBError, match="the disk is full"):
        sharing.adopt(path, root=disk)
    assert os.listdir(disk) == []


def test_a_session_that_is_there_stays_and_a_free_name_is_told(zip_of: Callable[[bytes], Path]) -> None:
    path = zip_of(zipped(CUP))
    first = sharing.adopt(path)
    (first.captions / "a.txt").write_text("mine")
    before = everything(first.path)
    for _ in range(2):
        with pytest.raises(SessionExists, match=r"cup: there is a session of this name already\. Use cup_2"):
            sharing.adopt(path)
    assert sharing.adopt(path, "cup_2").name == "cup_2"
    with pytest.raises(SessionExists, match="Use cup_3"):
        sharing.adopt(path)
    assert everything(first.path) == before


def test_a_zip64_is_read(zip_of: Callable[[bytes], Path]) -> None:
    """With the directory that zips of more than 65,535 members or 4 GB have."""
    data = zipped(CUP)
    place = data.rindex(b"PK\x05\x06")
    _, _, _, _, count, size, start, _ = END.unpack(data[place:])
    end = END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = LOCATOR64.pack(b"PK\x06\x07", 0, place, 1)
    short = END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert sharing.adopt(zip_of(data[:place] + end + locator + short)).name == "cup"
    far = LOCATOR64.pack(b"PK\x06\x07", 0, 4, 1)
    with pytest.raises(SessionError, match="invalid offset of the zip directory"):
        sharing.adopt(zip_of(data[:place] + end + far + short), "far")


def test_any_byte_may_be_wrong(tmp_path: Path, sessions_folder: Path) -> None:
    """One line or a whole session, never a bug; and what is taken has the bytes that its manifest speaks of."""
    good, chance = with_manifest(facts(CUP)), random.Random(7)
    path, taken = tmp_path / "cup.zip", 0
    for turn in range(200):
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data))] if turn % 10 == 0 else data)
        with suppress(FastDBError):
            session = sharing.adopt(path, "cup")
            taken += 1
            assert (session.captions / "a.txt").read_bytes() == b"on a table"
            shutil.rmtree(session.path)
        assert not sessions_folder.exists() or os.listdir(sessions_folder) == []
    assert 3 <= taken <= 100


parts = st.text(min_size=1, max_size=30).filter(lambda text: "/" not in text)


@given(path=st.lists(parts, min_size=1, max_size=10).map("/".join))
def test_a_name_that_passes_lies_inside_on_every_system(path: str) -> None:
    if name_fault(path):
        return
    from pathlib import PurePosixPath, PureWindowsPath

    for kind in (PurePosixPath, PureWindowsPath):
        inside = kind("root") / kind(path)
        assert not kind(path).is_absolute()
        assert not kind(path).drive
        assert ".." not in inside.parts
        assert inside.parts == ("root", *path.split("/"))
    path.encode("utf-8")


@given(path=st.lists(st.sampled_from(["..", ".", "", "a", "A:", "nul", "b ", "c.", "\\"]), min_size=1).map("/".join))
def test_a_name_of_dangerous_parts_passes_only_where_it_is_plain(path: str) -> None:
    plain = path != "" and set(path.split("/")) == {"a"} and len(path.split("/")) <= 8
    assert (name_fault(path) == "") == plain
