"""A flipped byte in any file of a trained session is noticed."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb import interactive
from fastdb.checkpoints.progress import standing
from fastdb.commands import sessions, training
from fastdb.commands.results import export, generate
from fastdb.errors import FastDBError
from fastdb.interactive import show
from fastdb.sessions.file_hashes import FILES, changes, unlisted
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.training import process
from tests.training.conftest import outcome, result


@pytest.fixture(scope="module")
def whole(
    make_session: Callable[..., Session], photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Session:
    """A session with some of everything that a session can hold."""
    session = make_session(samples__every_steps=8, captions__caption_files=True)
    folder = tmp_path_factory.mktemp("more")
    shutil.copy(photos[0], folder / "sks cup (7).png")
    (folder / "sks cup (7).txt").write_text("on a red table\n")
    sessions.add_images(session, [folder])
    assert outcome(process.start(session)) == "finished"
    export(session)
    generate(session, "a photo of sks cup", steps=2)
    return Session.open(session.path)


def files_of(session: Session) -> list[str]:
    return sorted(path.relative_to(session.path).as_posix() for path in session.path.rglob("*") if path.is_file())


def places(path: Path, many: int, chance: random.Random) -> list[int]:
    """First, last, and some between."""
    size = path.stat().st_size
    return sorted({0, size - 1, *(chance.randrange(size) for _ in range(many))}) if size else []


def flipped(path: Path, many: int, chance: random.Random) -> Iterator[int]:
    """The file with one bit of one byte turned, once for each place; it is whole again in the end."""
    data = path.read_bytes()
    for place in places(path, many, chance):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        yield place
    path.write_bytes(data)


def noticed(session: Session, name: str) -> bool:
    """Whether `fastdb check` names the file, in lines and with no traceback."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdb.console.views.say", said.append)
        try:
            interactive.check(session.path)
        except FastDBError as error:
            said.append(str(error))
        else:
            return False
    assert all(line.isprintable() for line in said), said
    parts = Path(name).parts
    wanted = "/".join(parts[:2]) if parts[0] == "checkpoints" and len(parts) > 2 else parts[-1]
    return any(wanted in line for line in said)


def each_file(session: Session, many: int) -> int:
    """Flip in each file; how many flips there were."""
    chance, flips = random.Random(5), 0
    before = {name: (session.path / name).read_bytes() for name in files_of(session)}
    for name in before:
        for place in flipped(session.path / name, many, chance):
            assert noticed(session, name), (name, place)
            flips += 1
    assert {name: (session.path / name).read_bytes() for name in files_of(session)} == before
    return flips


def test_every_file_is_of_a_kind_that_is_held_against_something(whole: Session) -> None:
    kinds = {re.sub(r"[\d-]+", "", name.split("/")[0]) for name in files_of(whole)}
    assert kinds >= {
        FILE, FILES, "originals", "instance_images", "captions", "class_images", "checkpoints", "samples", "logs",
        "generated", "cup.safetensors", "cup.ckpt",
    }  # fmt: skip
    assert unlisted(whole.path) == []
    assert changes(whole.path) == []
    assert sessions.check(whole) == []


def test_a_flipped_byte_in_any_file_is_noticed(whole: Session, copy: Callable[[Session], Session]) -> None:
    assert each_file(copy(whole), 1) > 100


@pytest.mark.full
def test_a_flipped_byte_anywhere_in_any_file_is_noticed(whole: Session, copy: Callable[[Session], Session]) -> None:
    assert each_file(copy(whole), 30) > 1000


@pytest.mark.parametrize("many", [3, pytest.param(300, marks=pytest.mark.full)])
def test_what_the_result_depends_on_never_changes_it_in_silence(
    many: int, whole: Session, copy: Callable[[Session], Session]
) -> None:
    """Whatever is flipped in a checkpoint: the state that is used is one that was saved, or nothing is."""
    session, chance = copy(whole), random.Random(7)
    saved = {path.name: path.read_bytes() for path in session.checkpoints.rglob("*.packed")}
    good = {path.read_bytes() for path in session.checkpoints.rglob("*.packed")}
    assert len(saved) >= 3
    for name in files_of(session):
        if not name.startswith("checkpoints/") or name.endswith("README.txt"):
            continue
        for place in flipped(session.path / name, many, chance):
            stands = standing(session)
            assert name.split("/")[1] not in {one.path.name for one in stands.checkpoints.values()}, (name, place)
            assert all(path.read_bytes() in good for path in stands.training_weights.values())
    assert result(session) == result(whole)


@pytest.mark.parametrize(
    "folder",
    [*(pytest.param(name, marks=pytest.mark.full) for name in ("instance_images", "class_images")), "captions"],
)
def test_what_was_changed_before_training_is_told_and_is_no_refusal(
    folder: str,
    make_session: Callable[..., Session],
    small_photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = make_session(captions__caption_files=True, text_encoder__steps=0, unet__steps=1, prior__class_images=1)
    (tmp_path / "cat.txt").write_text("on a chair\n")
    shutil.copy(small_photos[0], tmp_path / "cat.png")
    (session.class_images / "mine.png").write_bytes(small_photos[1].read_bytes())
    interactive.add_images(session, [tmp_path / "cat.png"])
    [path] = [one for one in (session.path / folder).iterdir() if one.stem in ("cat", "mine")]
    if path.suffix == ".txt":
        path.write_text("on a table\n")
    else:
        from PIL import Image

        Image.open(path).rotate(90).save(path)
    capsys.readouterr()
    assert interactive.train(session) == "finished"
    line = f"'{folder}/{path.name}' was edited or damaged since it was added"
    assert line in capsys.readouterr().out
    with pytest.raises(FastDBError, match="1 file was changed or damaged"):
        interactive.check(session)
    interactive.check(session, accept=True)
    interactive.check(session)


@pytest.mark.parametrize("kind", ["instance_images", pytest.param("class_images", marks=pytest.mark.full)])
def test_a_damaged_picture_is_refused_and_not_trained_on(kind: str, make_session: Callable[..., Session]) -> None:
    """One whose owner changed it has checksums that fit; one that rotted has not."""
    session = make_session(text_encoder__steps=0, unet__steps=1, prior__class_images=1)
    if kind == "class_images":
        other = next(path for path in session.instance_images.iterdir() if path.suffix == ".png")
        shutil.copy(other, session.class_images / "mine.png")
    path = next(path for path in sorted((session.path / kind).iterdir()) if path.suffix == ".png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(FastDBError, match=r"is damaged \(checksum mismatch\)"):
        training.train(session)
    assert list(session.checkpoints.glob("unet-*")) == []


def test_a_flipped_session_yaml_is_told_or_refused(
    whole: Session, copy: Callable[[Session], Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session, chance, refused, told = copy(whole), random.Random(3), 0, 0
    for place in flipped(session.path / FILE, 60, chance):
        capsys.readouterr()
        try:
            show(session.path)
        except FastDBError:
            refused += 1
        else:
            # The line of the checksum itself may be hit.
            assert re.search("session.yaml was (edited or damaged|cut short or edited)", capsys.readouterr().out), place
            told += 1
    assert min(refused, told) > 3


def test_a_share_of_damaged_files_says_so(
    whole: Session, copy: Callable[[Session], Session], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    session = copy(whole)
    path = next(iter(session.originals.glob("*.png")))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    interactive.share(session, tmp_path / "a.zip")
    assert f"'originals/{path.name}' was edited or damaged" in capsys.readouterr().out
