"""Sharing, adopting and duplicating sessions, and sessions of the classic notebook."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdb import interactive
from fastdb.checkpoints.checkpoint import save
from fastdb.checkpoints.retention import delete_checkpoint
from fastdb.commands import sessions, sharing, training
from fastdb.errors import (
    FastDBError,
    ImageError,
    SessionBusy,
    SessionError,
    SessionExists,
    SessionNotFound,
    StorageError,
)
from fastdb.images.captions import instance_images_of
from fastdb.sessions.file_hashes import FILES
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE, Run, read_record, write_record
from fastdb.sharing import transfer
from fastdb.storage import MANIFEST
from fastdb.storage.manifest import faults
from fastdb.training.process import training_lock

SETTINGS = {
    "token.try": "off",
    "unet.steps": 2,
    "text_encoder.steps": 1,
    "prior.class_images": 0,
    "unet.learning_rate": 3e-5,
}


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILES  # which each session has of its own
    }


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


@pytest.fixture
def session(photos: list[Path], tmp_path: Path) -> Session:
    """A session of two photos and all that training leaves, with an export, and with what never travels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photos[0], folder / "sks cat (1).png")
    shutil.copy(photos[2], folder / "sks cät (2).png")
    (folder / "sks cät (2).txt").write_text("on a täble\n", encoding="utf-8")
    made = sessions.new("cat", "mini", [folder], token="sks", class_word="cat", settings=SETTINGS)

    def write(hidden: Path) -> dict[str, str]:
        (hidden / "unet.safetensors").write_bytes(b"weights")
        return {}

    save(made.checkpoints, "unet", 2, {"step": 2}, write)
    (made.checkpoints / ".unfinished-unet-000003").mkdir()
    (made.checkpoints / ".unfinished-unet-000003" / "unet.safetensors").write_bytes(b"half")
    (made.class_images / "class-0001.png").write_bytes(photos[1].read_bytes())
    (made.logs / "run.jsonl").write_text("{}\n")
    (made.path / "cat.safetensors").write_bytes(b"export")
    (made.path / ".hidden").write_text("x")
    (made.path / "link").symlink_to("/etc/passwd")
    run = Run(started="2026-01-01T00:00:00+00:00", begins="unet step 0", outcome="finished")
    write_record(made.path, made.record.model_copy(update={"runs": (run,)}))
    return Session.open("cat")


HEAVY = {
    "checkpoints/unet-000002/MANIFEST.json",
    "checkpoints/unet-000002/state.json",
    "checkpoints/unet-000002/unet.safetensors",
    "class_images/class-0001.png",
    "logs/run.jsonl",
}
STAYS = {"cat.safetensors", ".hidden", "link", "checkpoints/.unfinished-unet-000003/unet.safetensors"}


@pytest.mark.parametrize("checkpoints", [False, True])
def test_what_was_shared_is_what_is_adopted(checkpoints: bool, session: Session, tmp_path: Path) -> None:
    before = contents(session.path)
    path = sharing.share(session, tmp_path / "out.zip", checkpoints=checkpoints)
    adopted = sharing.adopt(path, "new")
    assert contents(session.path) == before
    expected = {name: before[name] for name in before.keys() - STAYS - (set() if checkpoints else HEAVY)}
    found = contents(adopted.path)
    assert {name: found[name] for name in found if name != FILE} == {k: v for k, v in expected.items() if k != FILE}
    assert (adopted.record.lineage == session.record.lineage) == checkpoints
    lineage = adopted.record.lineage
    runs = session.record.runs if checkpoints else ()
    assert adopted.record == session.record.model_copy(update={"name": "new", "lineage": lineage, "runs": runs})
    pictures = instance_images_of(adopted.instance_images, adopted.captions, adopted.config.captions.instance_prompt)
    assert [(one.path.name, one.prompt) for one in pictures] == [
        ("sks cat (1).png", "a photo of sks cat"),
        ("sks cät (2).png", "a photo of sks cat on a täble"),
    ]
    if checkpoints:
        assert faults(adopted.checkpoints / "unet-000002") == []
    assert listed(tmp_path) == ["out.zip", "photos", "sessions"]


@pytest.mark.parametrize("verb", ["share", "duplicate", "adopt"])
def test_checkpoints_that_are_copied_cannot_be_deleted_meanwhile(
    verb: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, tried = session.checkpoints / "unet-000002", list[str]()
    name = "write_archive" if verb == "share" else "copy_files"
    honest = getattr(sharing, name)

    def trying(*arguments: object) -> object:
        with pytest.raises(BlockingIOError):
            delete_checkpoint(checkpoint)
        tried.append(verb)
        return honest(*arguments)

    monkeypatch.setattr(sharing, name, trying)
    if verb == "share":
        sharing.share(session, tmp_path / "cat.zip", checkpoints=True)
    elif verb == "duplicate":
        sharing.duplicate(session, "copy", checkpoints=True)
    else:
        sharing.adopt(session.path, "copy")
    assert tried == [verb]
    delete_checkpoint(checkpoint)


def test_an_archive_under_its_own_name_is_the_session_byte_for_byte(session: Session, tmp_path: Path) -> None:
    path = sharing.share(session, tmp_path / "cat.zip", checkpoints=True)
    before = contents(session.path)
    shutil.move(session.path, tmp_path / "aside")
    assert contents(sharing.adopt(path).path) == {k: v for k, v in before.items() if k not in STAYS}


def test_an_archive_holds_a_manifest_and_nothing_of_this_machine(session: Session, tmp_path: Path) -> None:
    first = sharing.share(session, tmp_path / "a.zip")
    os.utime(session.instance_images / "sks cat (1).png", (1e9, 1e9))
    assert sharing.share(session, tmp_path / "b.zip").read_bytes() == first.read_bytes(), (
        "times and users are not in it"
    )
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("cat/MANIFEST.json"))
        files = {name.removeprefix("cat/"): archive.read(name) for name in archive.namelist()}
    del files[MANIFEST]
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }


def test_any_unzip_and_a_folder_lead_to_the_same(session: Session, tmp_path: Path) -> None:
    sharing.share(session, tmp_path / "cat.zip")
    with zipfile.ZipFile(tmp_path / "cat.zip") as archive:
        archive.extractall(tmp_path / "mount")
    before = contents(tmp_path / "mount")
    adopted = sharing.adopt(tmp_path / "mount", "new")
    assert contents(tmp_path / "mount") == before
    assert not (adopted.path / MANIFEST).exists()
    (tmp_path / "mount" / "cat" / "captions" / "sks cät (2).txt").write_text("changed")
    with pytest.raises(SessionError, match="does not match its manifest"):
        sharing.adopt(tmp_path / "mount", "newer")
    (tmp_path / "mount" / "cat" / MANIFEST).unlink()
    assert (sharing.adopt(tmp_path / "mount", "newer").captions / "sks cät (2).txt").read_text() == "changed"
    assert listed(session.path.parent) == ["cat", "new", "newer"]


def test_a_session_of_another_mount_is_copied_whole(session: Session, tmp_path: Path) -> None:
    before = contents(session.path)
    adopted = sharing.adopt(session.path, "dog", root=tmp_path / "elsewhere")
    expected = {name: before[name] for name in before.keys() - STAYS - {FILE}}
    found = contents(adopted.path)
    assert {name: found[name] for name in found.keys() - {FILE}} == expected | {
        "dog.safetensors": before["cat.safetensors"]
    }
    assert len(adopted.record.runs) == 1
    assert contents(session.path) == before


def test_a_duplicate_has_no_history_unless_its_checkpoints_come_along(session: Session) -> None:
    before = contents(session.path)
    light, whole = sharing.duplicate("cat", "light"), sharing.duplicate("cat", "whole", checkpoints=True)
    assert (light.record.runs, whole.record.runs) == ((), session.record.runs)
    as_before = {"name": "cat", "runs": session.record.runs, "lineage": session.record.lineage}
    assert light.record.model_copy(update=as_before) == session.record
    assert light.record.lineage != whole.record.lineage == session.record.lineage
    assert contents(light.path).keys() == before.keys() - STAYS - HEAVY
    assert contents(whole.path).keys() == before.keys() - STAYS
    assert contents(session.path) == before


def test_what_is_left_out_is_said(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interactive.share(session, tmp_path)
    said = capsys.readouterr().out
    assert "Skipping 'link': it is a link or not a regular file" in said
    assert "Left out: checkpoints, class_images, logs. Include them with --checkpoints" in said
    assert "Left out: cat.safetensors" in said
    assert f"Verified {tmp_path / 'cat.zip'}: " in said


def test_nothing_is_overwritten(session: Session, tmp_path: Path) -> None:
    path = sharing.share(session, tmp_path / "cat.zip")
    before = contents(tmp_path)
    for attempt in (
        lambda: sharing.share(session, path),
        lambda: sharing.adopt(path),
        lambda: sharing.adopt(path, "cat"),
        lambda: sharing.adopt(session.path),
        lambda: sharing.duplicate(session, "cat"),
        lambda: sharing.duplicate(session, "CON"),
        lambda: sharing.share(session, session.path / "cat.zip"),
        lambda: sharing.share(session, tmp_path / "cat.tar"),
        lambda: sharing.share("dog", tmp_path / "dog.zip"),
        lambda: sharing.adopt(path, "../cat"),
        lambda: sharing.adopt(tmp_path / "gone.zip"),
        lambda: sharing.adopt(tmp_path / "photos"),
    ):
        with pytest.raises(FastDBError) as caught:
            attempt()
        assert caught.value.fix
    assert contents(tmp_path) == before


def test_names_taken_are_told_apart_by_what_was_asked(session: Session, tmp_path: Path) -> None:
    with pytest.raises(SessionExists, match="Use cat_2"):
        sharing.duplicate(session, "cat")
    with pytest.raises(SessionNotFound):
        sharing.share("dog")
    with pytest.raises(StorageError, match="no such folder"):
        sharing.share(session, tmp_path / "gone" / "cat.zip")


def test_a_file_that_other_disks_refuse_is_named(session: Session, tmp_path: Path) -> None:
    (session.captions / "what?.txt").write_text("x")
    for attempt in (lambda: sharing.share(session, tmp_path / "a.zip"), lambda: sharing.adopt(session.path, "b")):
        with pytest.raises(
            SessionError, match=r"its file 'captions/what\?.txt' has a name that Windows or Google Drive"
        ):
            attempt()
    (session.captions / "what?.txt").rename(session.captions / "SKS CÄT (2).txt")
    with pytest.raises(SessionError, match="exists twice if upper and lower case are equal"):
        sharing.share(session, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_checkpoints_are_not_taken_from_under_a_trainer(session: Session, tmp_path: Path) -> None:
    with training_lock(session.path):
        for attempt in (
            lambda: sharing.share(session, tmp_path / "a.zip", checkpoints=True),
            lambda: sharing.duplicate(session, "new", checkpoints=True),
            lambda: sharing.adopt(session.path, "new"),
        ):
            with pytest.raises(SessionBusy, match="is being trained"):
                attempt()
        sharing.share(session, tmp_path / "a.zip")


def test_the_base_model_may_lie_elsewhere_but_be_no_other(session: Session, mini: Path, tmp_path: Path) -> None:
    path = sharing.share(session, tmp_path / "a.zip")
    place = shutil.copytree(mini, tmp_path / "model")
    assert sharing.adopt(path, "one", base=place).record.base_model.folder == str(place)
    record = session.record.model_copy(
        update={"base_model": session.record.base_model.model_copy(update={"fingerprint": "0"})}
    )
    write_record(session.path, record)
    other = sharing.share(session, tmp_path / "b.zip")
    with pytest.raises(SessionError, match="was made with another base model"):
        sharing.adopt(other, "two", base=place)
    assert listed(session.path.parent) == ["cat", "one"]


def test_a_file_that_changes_while_it_is_read_spoils_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = transfer._blocks

    going = session.instance_images / "sks cät (2).png"
    data = going.read_bytes()

    def vanishing(path: Path):  # type: ignore[no-untyped-def]
        going.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(transfer, "_blocks", vanishing)
    for attempt in (lambda: sharing.share(session, tmp_path / "a.zip"), lambda: sharing.duplicate(session, "new")):
        going.write_bytes(data)
        with pytest.raises(SessionError, match="changed or vanished while it was read"):
            attempt()
    assert listed(session.path.parent) == ["cat"]
    assert listed(tmp_path) == ["photos", "sessions"]


def test_an_archive_that_reads_back_otherwise_gets_no_name(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter([hashlib.sha256(b"other")])
    real = hashlib.sha256

    class Hashes:
        @staticmethod
        def sha256(*given: bytes):  # type: ignore[no-untyped-def]
            return next(digests, real(*given))

    monkeypatch.setattr(transfer, "hashlib", Hashes)
    with pytest.raises(SessionError, match="does not match after writing"):
        sharing.share(session, tmp_path / "a.zip")
    assert listed(tmp_path) == ["photos", "sessions"]


def test_a_full_disk_leaves_no_archive_and_no_session(session: Session, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    (session.path / "evaluation").mkdir(exist_ok=True)
    (session.path / "evaluation" / "a.png").write_bytes(os.urandom(2_000_000))
    for attempt in (
        lambda: sharing.share(session, disk / "a.zip"),
        lambda: sharing.adopt(session.path, root=disk / "s"),
        lambda: sharing.duplicate(session.path, "new", root=disk / "s"),
    ):
        with pytest.raises(StorageError, match="the disk is full"):
            attempt()
    assert listed(disk) in ([], ["s"])
    assert listed(disk / "s") == []


CUT = """
import shutil
from fastdb import console
from fastdb.commands import sharing
def prepare(folder):
    shutil.copytree({session!r}, folder / "in" / "cat")
def work(folder):
    sharing.duplicate(folder / "in" / "cat", "new", root=folder / "out")
"""


def test_killed_anywhere_there_is_a_whole_session_or_none(
    session: Session, cut_everywhere: Callable[[str], list[Path]]
) -> None:
    (session.path / "link").unlink()
    folders = cut_everywhere(CUT.format(session=str(session.path)))
    assert len(folders) > 30
    whole = contents(folders[-1] / "out" / "new")
    for folder in folders:
        named = [name for name in listed(folder / "out") if not name.startswith(".")]
        assert named in ([], ["new"])
        if named:
            found = contents(folder / "out" / "new")
            assert found.pop(FILE), "which differs by its lineage"
            assert found == {name: whole[name] for name in whole.keys() - {FILE}}
            assert Session.open("new", folder / "out").record.lineage
        assert list(Session.list(folder / "out")) == ([Session.open("new", folder / "out")] if named else [])


def test_an_adopted_session_trains_and_the_original_stays(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = sharing.share(session, tmp_path / "a.zip")
    before = contents(session.path)
    adopted = sharing.adopt(path, "new")
    assert training.train(adopted) == "finished"
    assert {one.name for one in adopted.checkpoints.glob("*-0*")} == {"text_encoder-000001", "unet-000002"}
    assert contents(session.path) == before


def test_a_checkpoint_that_came_is_believed_by_its_manifest_alone(session: Session, tmp_path: Path) -> None:
    from fastdb.checkpoints.checkpoint import newest

    (session.checkpoints / "unet-000002" / "unet.safetensors").write_bytes(b"weighty")
    adopted = sharing.adopt(sharing.share(session, tmp_path / "a.zip", checkpoints=True), "new")
    assert newest(adopted.checkpoints, "unet")[0] is None


@pytest.fixture
def classic(photos: list[Path], tmp_path: Path) -> Path:
    """A session's folder as the classic notebook leaves it: images cropped to 512 but for one, captions, a model."""
    folder = tmp_path / "Sessions" / "my dog"
    for name in ("instance_images/.ipynb_checkpoints", "captions", "concept_images", "tokenizer"):
        (folder / name).mkdir(parents=True)
    for number, photo in enumerate(photos, start=1):
        image = Image.open(photo).convert("RGB")
        side = min(image.size)
        square = image.crop((0, 0, side, side)).resize((512, 512))
        square.save(folder / "instance_images" / f"sks ({number}).jpg", quality=95)
    Image.open(photos[2]).convert("RGB").save(folder / "instance_images" / "sks (4).png")
    (folder / "instance_images" / "sks (5).jpg").write_bytes(b"half a photo")
    (folder / "instance_images" / "sks (2).txt").write_text("beside")
    (folder / "captions" / "sks (1).txt").write_text("a cät", encoding="utf-8")
    (folder / "captions" / "sks (3).txt").write_bytes("kätze".encode("latin-1"))
    Image.open(photos[0]).convert("RGB").resize((300, 300)).save(folder / "concept_images" / "style (1).png")
    (folder / "instance_images.zip").write_bytes(b"PK")
    (folder / "my dog.ckpt").write_bytes(b"model")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    return folder


def test_a_session_of_the_classic_notebook_is_adopted_as_it_is(
    classic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(classic)
    session = interactive.adopt(classic, base="mini")
    said = capsys.readouterr().out
    assert contents(classic) == before
    assert (session.name, session.record.base_model.folder) == ("my_dog", "mini")
    assert "Imported 4 of 5 images of a session of the classic notebook" in said
    assert "Skipping photo sks (5).jpg: the file is not a supported image" in said
    assert "Skipping sks (3).txt: the caption is not UTF-8 text" in said
    assert f"--base {classic / 'my dog.ckpt'}" in said
    for number in (1, 2, 3):
        name = f"sks ({number}).jpg"
        assert (session.originals / name).read_bytes() == (classic / "instance_images" / name).read_bytes()
        trained = np.asarray(Image.open(session.instance_images / f"sks ({number}).png"), dtype=float)
        whole = Image.open(classic / "instance_images" / name).resize((64, 64), Image.Resampling.LANCZOS)
        assert np.abs(trained - np.asarray(whole, dtype=float)).mean() < 4, "a face in it is no reason to crop again"
    pictures = instance_images_of(session.instance_images, session.captions, None)
    assert [one.prompt for one in pictures] == ["sks a cät", "sks beside", "sks", "sks"]
    assert size_of(session.instance_images / "sks (4).png") == (64, 64)
    assert (session.class_images / "concept-0001.txt").read_text() == "style\n"
    assert size_of(session.class_images / "concept-0001.png") == (64, 64)
    assert not (session.path / "my dog.ckpt").exists()
    with pytest.raises(SessionExists, match="Use my_dog_2"):
        interactive.adopt(classic, base="mini")
    assert listed(session.path.parent) == ["my_dog"]


def test_a_zip_of_a_classic_session_is_adopted_too(classic: Path, tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "old"), "zip", classic.parent))
    by_zip, by_folder = sharing.adopt(path, "a", base="mini"), sharing.adopt(classic, "b", base="mini")
    one, other = contents(by_zip.path), contents(by_folder.path)
    del one[FILE], other[FILE]
    assert one == other
    assert by_zip.config == by_folder.config
    assert listed(by_zip.path.parent) == ["a", "b"]


def test_a_classic_session_without_a_usable_picture_is_none(classic: Path, sessions_folder: Path) -> None:
    for path in (classic / "instance_images").glob("*.*g"):
        path.write_bytes(b"no photo")
    with pytest.raises(ImageError, match="no photo can be used"):
        sharing.adopt(classic, base="mini")
    for path in (classic / "instance_images").glob("*.*g"):
        path.unlink()
    with pytest.raises(SessionError, match=r"instance_images.zip cannot be used as an archive"):
        sharing.adopt(classic, base="mini")
    assert listed(sessions_folder) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(called=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80))
@example(called="my dog (2)")
@example(called="CON")
@example(called="../../etc")
@example(called="\u212b" * 63)
def test_whatever_it_is_called_it_gets_a_plain_name_or_a_line(called: str, tmp_path: Path) -> None:
    data = b"format: 1\nname: x\ncreated: ''\nbase_model: {folder: mini, fingerprint: '0'}\n"
    path, root = tmp_path / "x.zip", tmp_path / "sessions"
    with zipfile.ZipFile(path, "w") as archive:
        try:
            archive.writestr(f"{called}/session.yaml", data)
        except (UnicodeEncodeError, ValueError):
            return
    session = None
    with suppress(FastDBError):
        session = sharing.adopt(path, root=root)
    if session is None:
        assert listed(root) == []
        return
    assert session.path.parent == root
    assert Session.open(session.name, root).record.name == session.name
    assert listed(root) == [session.name]
    shutil.rmtree(session.path)


def test_the_command_line_shares_adopts_and_duplicates(session: Session, tmp_path: Path) -> None:
    def fastdb(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastdb", *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(sharing.__file__).parents[2])},
        )

    shared = fastdb("share", "cat")
    assert (shared.returncode, (tmp_path / "cat.zip").is_file()) == (0, True), shared
    assert "cat.zip: 100%" in shared.stderr
    assert fastdb("adopt", "cat.zip", "new").returncode == 0
    assert fastdb("duplicate", "new", "newer", "--checkpoints").returncode == 0
    refused = fastdb("adopt", "cat.zip")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: cat: there is a session of this name already. Use cat_2, for example.\n"
    assert read_record(session.path.parent / "newer").name == "newer"
