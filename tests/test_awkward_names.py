"""Awkward names for sessions, photos, captions, prompts and roots work or are refused.
line."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdb import interactive
from fastdb.commands import sessions, sharing, training
from fastdb.errors import FastDBError
from fastdb.images.captions import instance_images_of
from fastdb.interactive import list_sessions, show
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import read_record
from fastdb.sharing.transfer import files_of
from tests.known_faces import faces_detected_once

NAMES = [
    "plain", "Plain", "PLAIN", "two words", " leading", "trailing ", "  ", "tab\there", "line\nbreak", "\n", "cr\rcr",
    "bell\x07", "esc\x1b[31m", "nul-ish\x01", "del\x7f", "nbsp\u00a0nbsp", "zero\u200bwidth", "joiner\u200djoiner",
    "rtl\u202eoverride", "שלום", "مرحبا بالعالم", "Жучка", "犬", "犬" * 60, "ひらがな", "ไทย", "हिन्दी", "한국어",
    unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été"), unicodedata.normalize("NFD", "한국어"),
    "e\u0301\u0301\u0301", "ﬁligree", "ⅷ", "İstanbul", "straße", "STRASSE", "ſharp", "𐐀", "𝕦𝕟𝕚", "\N{DOG FACE}",
    "👨‍👩‍👧", "🇨🇭", "☃\ufe0f", "\ufeffbom", "\u2028line", "\u0085next", "quo'te", 'quo"te', "back`tick", "“curly”",
    "a;b", "a|b", "a<b>c", "a*b", "a?b", "a:b", "C:x", "a%20b", "%s%d%n", "{0}", "{name}", "$(touch pwned)", "`id`",
    "$HOME", "~", "~root", "!important", "#hash", "@at", "a=b", "a+b", "a,b", "(1)", "sks (1)", "sks (2)", "[x]", "{}",
    "-rf", "--help", "-", "--", "_", "__init__", ".", "..", "...", ".hidden", "trailing.", "a..b", "a.b.c", "a.png",
    "a.txt", "a.safetensors", "CON", "nul", "com1", "LPT9", "aux.x", "Thumbs", "desktop.ini", "a\\b", "\\\\server",
    "a" * 63, "a" * 64, "a" * 190, "x" * 240, "é" * 120, "0", "007", "1e5", "null", "yes", "no", "a: b", "- a", "* a",
    "&amp", "!!python/object:os.system", "<|endoftext|>", "<script>", "'; DROP TABLE", "\udcff\udcfe",
]  # fmt: skip


def picture(path: Path, number: int) -> bool:
    """A small picture of its own under that name; whether the disk takes the name."""
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    try:
        with path.open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    except (OSError, ValueError):
        return False
    return True


LINES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e]")


@pytest.fixture
def refused() -> Iterator[list[str]]:
    """What was said where something was refused: a line each, which `complain` prints as one."""
    said: list[str] = []
    yield said
    assert all(len(line) < 1500 and "Traceback" not in line for line in said)


@pytest.fixture
def known_faces() -> Iterator[None]:
    """The few photos are the same under each name."""
    with faces_detected_once():
        yield


def test_there_are_a_hundred() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 100


@pytest.mark.usefixtures("known_faces")
def test_as_sessions(refused: list[str], sessions_folder: Path, photos: list[Path], tmp_path: Path) -> None:
    made = []
    for name in NAMES:
        try:
            session = sessions.new(name, "mini", [photos[0]])
        except FastDBError as error:
            refused.append(str(error))
            continue
        made.append(name)
        assert session.path.parent == sessions_folder
        assert session.path.name == name
        show(name)
        shared = sharing.share(name, tmp_path / f"{len(made)}.zip")
        assert sharing.adopt(shared, root=tmp_path / str(len(made))).name == name
    assert {"plain", "Жучка", "a..b", "007", "null"} <= set(made)
    assert len(made) > 20
    assert sorted(os.listdir(sessions_folder)) == sorted(made)
    assert {session.name for session in list_sessions()} == set(made)


@pytest.mark.full
def test_as_roots(refused: list[str], tmp_path: Path, photos: list[Path]) -> None:
    made = 0
    for number, name in enumerate(NAMES):
        if name in (".", "..") or name.startswith("~"):
            continue
        root = tmp_path / "roots" / name / str(number)
        try:
            session = sessions.new("dog", "mini", root=root)
        except FastDBError as error:
            refused.append(str(error))
            continue
        made += 1
        assert Session.open("dog", root) == session
        show(session.path)
        sharing.duplicate(session, "cat", root=root)
        assert sharing.share(session, tmp_path / f"{number}.zip").is_file()
    assert made > 100


def test_as_words_of_a_session(refused: list[str], sessions_folder: Path) -> None:
    """Token, class word and prompt come back from `session.yaml` as they were, or are refused."""
    same = 0
    for number, name in enumerate(NAMES):
        settings = {"captions.instance_prompt": f"a photo of {name}", "samples.prompts": [name]}
        try:
            made = sessions.new(f"s{number}", "mini", token=name, class_word=name, settings=settings)
        except FastDBError as error:
            refused.append(str(error))
            assert not (sessions_folder / f"s{number}").exists()
            continue
        read = read_record(made.path)
        assert read == made.record, name
        assert read.subject.token == name
        assert read.config.captions.instance_prompt == f"a photo of {name}"
        same += 1
    assert same > 100


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """A folder with a picture and a caption under each name, as far as the disk takes them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    there = [name for number, name in enumerate(NAMES) if picture(folder / f"{name}.png", number)]
    for name in there:
        (folder / f"{name}.txt").write_bytes(name.encode("utf-8", "replace"))
    assert len(there) > 100
    return folder


@pytest.mark.full
@pytest.mark.usefixtures("known_faces")
def test_as_photos_and_captions(
    refused: list[str], awkward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"captions.caption_files": True}
    session = interactive.new("dog", "mini", token="sks", settings=settings)
    prompt = session.config.captions.instance_prompt
    given = [path for path in sorted(awkward.iterdir()) if path.suffix == ".png"]
    try:
        interactive.add_images(session, given)
    except FastDBError as error:
        refused.append(str(error))
    said = capsys.readouterr().out
    left_out = [line for line in said.split("\n") if line.startswith("Skipping photo ")]
    assert not any(map(LINES.search, said.split("\n")))
    pictures = instance_images_of(session.instance_images, session.captions, prompt)
    assert len(pictures) + len(left_out) == len(given)
    assert len(pictures) > 100
    assert len({one.path.name.casefold() for one in pictures}) == len(pictures)
    _, left = files_of(session.path)
    assert left == []
    show(session)
    adopted = interactive.adopt(interactive.share(session, tmp_path / "a.zip"), "again")
    again = instance_images_of(adopted.instance_images, adopted.captions, prompt)
    assert [(one.path.name, one.prompt) for one in again] == [(one.path.name, one.prompt) for one in pictures]
    by_one = interactive.new("one", "mini")
    shutil.rmtree(session.path)
    for path in given[:40]:
        try:
            interactive.add_images(by_one, [path])
        except FastDBError as error:
            refused.append(str(error))


@pytest.mark.usefixtures("known_faces")
def test_all_the_way(refused: list[str], awkward: Path, tmp_path: Path) -> None:
    """Photos, captions and prompts of all names, a session and a root of awkward ones: trained, exported, shared."""
    pytest.importorskip("torch")
    from fastdb.commands.results import export

    settings = {
        "token.try": "off", "stop.check_loss": False,
        "text_encoder.steps": 1, "unet.steps": 1, "prior.class_images": 0, "captions.caption_files": True,
        "samples.every_steps": 1, "samples.steps": 1, "samples.prompts": NAMES[:-1:12],
    }  # fmt: skip
    root = tmp_path / "ro ot's \N{DOG FACE}"
    session = sessions.new("犬_é.v2-", "mini", token="-rf", root=root, settings=settings)
    try:
        sessions.add_images(session, [awkward])
    except FastDBError as error:
        refused.append(str(error))
    assert training.train(session) == "finished"
    assert [path.name for path in export(session)] == ["犬_é.v2-.safetensors", "犬_é.v2-.ckpt"]
    show(session)
    path = sharing.share(session, tmp_path, checkpoints=True)
    adopted = sharing.adopt(path, "again")
    assert training.train(adopted) == "finished"
