"""A session.yaml that was cut short is named, and nothing begins with the defaults that would replace its settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.commands import folders, results, session_changes, sessions, sharing, training
from fastdb.errors import FastDBError, SessionError, StorageError, TrainingError
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE, missing_parts, read_record
from fastdb.training import process

SAMPLES = Path(__file__).resolve().parents[1] / "formats"
SETTINGS = {
    "token.try": "off",
    "stop.check_loss": False,
    "prior.class_images": 0,
    "text_encoder.steps": 0,
    "unet.steps": 1,
    "prior.prompts": ["a mug"],
}
SEAL = "the last line, which has the checksum"


@pytest.fixture
def mug(photos: list[Path]) -> Session:
    return sessions.new("mug", "mini", photos[:1], token="sks", class_word="mug", settings=SETTINGS)


def cut(session: Session, before: str) -> Path:
    """Cut the file off before a line."""
    file = session.path / FILE
    text = file.read_text()
    assert f"\n{before}" in text
    file.write_text(text[: text.index(f"\n{before}") + 1])
    return file


def test_no_cut_counts_as_whole(mug: Session) -> None:
    file = mug.path / FILE
    data = file.read_bytes()
    assert missing_parts(mug.path) == []
    ends = [match.end() for match in re.finditer(rb"\n", data)][:-1]
    refused = 0
    for end in sorted({*ends, *range(0, len(data) - 1, 41)}):
        file.write_bytes(data[:end])
        try:
            read_record(mug.path)
        except FastDBError:
            refused += 1
            continue
        assert missing_parts(mug.path)[-1] == SEAL, data[end - 40 : end]
    assert refused > 5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_files_of_earlier_formats_are_whole(number: int) -> None:
    assert missing_parts(SAMPLES / f"session-{number}") == []


VERBS: dict[str, Callable[[Session], object]] = {
    "train": training.train,
    "restart": lambda session: training.train(session, restart=True),
    "change": lambda session: session_changes.change(session, settings={"unet.steps": 9}),
    "extend": lambda session: training.extend(session, 5),
    "share": sharing.share,
    "duplicate": lambda session: sharing.duplicate(session, "copy"),
    "rename": lambda session: folders.rename(session, "cup"),
}


def test_before_the_first_checkpoint_every_verb_that_uses_it_refuses(mug: Session, tmp_path: Path) -> None:
    file = cut(mug, "  unet:")
    before = file.read_bytes()
    for name, verb in VERBS.items():
        with pytest.raises(
            SessionError, match=r"session\.yaml is incomplete: it lacks runs, extended, config\.unet"
        ) as e:
            verb(mug)
        assert e.value.fix.endswith("accept it with: fastdb check mug --accept"), name
    end = list(process.start(mug).follow())[-1]
    assert (end["outcome"], "is incomplete: it lacks" in end["message"]) == ("failed", True)
    with pytest.raises(SessionError, match="cannot be used: it lacks runs"):
        sharing.adopt(mug.path, "other")
    assert file.read_bytes() == before
    assert {path.name for path in mug.path.parent.iterdir()} == {"mug"}
    # It opens, and says so.
    [note] = sessions.show("mug").changed
    assert (note.kind, note.reason.endswith(SEAL)) == ("session.yaml incomplete", True)
    with pytest.raises(StorageError, match="1 file was changed or damaged"):
        sessions.check("mug")


def test_an_edited_file_is_accepted(mug: Session) -> None:
    file = cut(mug, "extended:")
    file.write_text(file.read_text().replace("steps: 1\n", "steps: 2\n").removesuffix("\n"))
    with pytest.raises(SessionError, match=f"it lacks extended, {SEAL}"):
        training.train(mug)
    sessions.check("mug", accept=True)
    assert missing_parts(mug.path) == []
    assert training.train("mug") == "finished"
    assert sessions.show("mug").progress == "text_encoder 0/0, unet 2/2"


def test_after_the_first_checkpoint_the_recipe_decides_first(mug: Session) -> None:
    assert training.train(mug) == "finished"
    whole = (mug.path / FILE).read_text()
    # Settings that are gone are a change of the recipe; the history is not.
    cut(mug, "  unet:")
    with pytest.raises(TrainingError, match="changed since step 1 of the unet stage"):
        training.train("mug")
    (mug.path / FILE).write_text(whole)
    lost = cut(mug, "runs:").read_bytes()
    for verb in (training.train, results.export, lambda name: training.extend(name, 1)):
        with pytest.raises(SessionError, match="incomplete"):
            verb("mug")
    assert (mug.path / FILE).read_bytes() == lost, "nothing was sealed"
    sessions.check("mug", accept=True)
    results.export("mug", formats=["safetensors"])
    assert missing_parts(mug.path) == []
