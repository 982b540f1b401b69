"""Reports of disk usage and deletion of files that can be made again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.checkpoints.checkpoint import complete, save
from fastdb.checkpoints.disk_usage import KINDS, REMOVABLE, costs_of
from fastdb.commands import space
from fastdb.console import ConsoleReport
from fastdb.downloads.model_cache import entries, locked, note_use, place, remember
from fastdb.errors import ConfigError, SessionBusy
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.manifest import faults
from fastdb.training.process import training_lock

FASTDB = [sys.executable, "-m", "fastdb"]


def fastdb(*arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [*FASTDB, *map(str, arguments)]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=120)


def yes(question: str) -> bool:
    return True


def put(session: Session, step: int, stage: str = "unet", size: int = 1000) -> Path:
    def write(hidden: Path) -> dict[str, str]:
        data = f"{stage}{step}".encode().ljust(size)
        (hidden / f"{stage}.safetensors").write_bytes(data)
        return {f"{stage}.safetensors": hashlib.sha256(data).hexdigest()}

    return save(session.checkpoints, stage, step, {"step": step}, write)[0].path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def session(sessions_folder: Path) -> Session:
    """A session with some of every kind, all steps done, and things a person put there under names like ours."""
    from PIL import Image, PngImagePlugin

    made = Session.create("dog", base_model=BaseModelRecord(folder="/m", fingerprint="0"))
    made = made.with_config(made.config.changed({"text_encoder.steps": 4, "unet.steps": 50}))
    folder = made.path
    for step in (1, 2, 3, 4):
        put(made, step, "text_encoder")
    for step in (10, 20, 30, 40, 50):
        put(made, step)
    flip(folder / "checkpoints" / "unet-000040" / "unet.safetensors")
    (folder / "checkpoints" / "set-aside-1" / "unet-000007").mkdir(parents=True)
    (folder / "checkpoints" / "set-aside-1" / "unet-000007" / "unet.safetensors").write_bytes(bytes(70_000))
    (folder / "checkpoints" / ".unfinished-unet-000060").mkdir()
    (folder / "checkpoints" / ".unfinished-unet-000060" / "unet.safetensors").write_bytes(bytes(60_000))
    (folder / ".dog.ckpt.123.part").write_bytes(bytes(6_000))
    for name in ("dog.safetensors", "dog.ckpt", "dog_step_20.ckpt"):
        (folder / name).write_bytes(bytes(30_000))
    (folder / "dog_vae.safetensors").write_bytes(b"a person's own")
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "a photo of a dog")
    picture = Image.new("RGB", (64, 64))
    picture.save(folder / "class_images" / "class-0001.png", pnginfo=told)
    picture.save(folder / "class_images" / "class-0002.png")  # a person's own, of a name like ours
    picture.save(folder / "class_images" / "rex.png", pnginfo=told)
    picture.save(folder / "samples" / "unet-000010-1.png")
    picture.save(folder / "samples" / "holiday.png")
    for name in ("originals/rex.jpg", "instance_images/rex.png", "captions/rex.txt", "logs/run-1.jsonl", "notes.txt"):
        (folder / name).write_bytes(bytes(500))
    return made


def test_all_bytes_are_told_once_under_their_kind(session: Session) -> None:
    [spent] = space.space(["dog"]).sessions
    assert spent.bytes == sum(path.stat().st_size for path in session.path.rglob("*") if path.is_file())
    assert {cost.kind for cost in spent.costs} <= set(KINDS)
    assert spent.of("set-aside") == 70_000
    assert spent.of("unfinished") == 66_000
    assert spent.of("exports") == 90_000
    checkpoints = {cost.path.name for cost in spent.costs if cost.kind == "checkpoints"}
    assert checkpoints == {one.path.name for one in complete(session.checkpoints)}
    assert spent.of("photos") >= 1500


def test_the_commands_show_it(session: Session, sessions_folder: Path, tmp_path: Path) -> None:
    Session.create("cat", base_model=BaseModelRecord(folder="/m", fingerprint="0"))
    (sessions_folder / "no session").mkdir()
    done = fastdb("space")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"2 sessions in {sessions_folder}"
    head = re.split(" {2,}", lines[1])
    row = dict(zip(head, re.split(" {2,}", lines[3]), strict=True))
    assert (row["session"], row["set-aside"], row["exports"]) == ("dog", "70.0 kB", "90.0 kB")
    assert lines[4].startswith("total ")
    assert any(" free on the disk of " in line for line in lines)
    done = fastdb("space", "dog")
    assert re.search(r"^  checkpoints/unet-000050 +\d", done.stdout, re.MULTILINE)
    assert re.search(r"^  checkpoints/set-aside-1 +70.0 kB$", done.stdout, re.MULTILINE)
    assert "did you mean dog?" in fastdb("space", "dgo").stderr.lower()


def test_of_many_sessions_each_folder_is_listed_a_few_times_and_no_file_is_opened(
    session: Session, sessions_folder: Path
) -> None:
    """Only names and sizes: a damaged record and unreadable bytes are no matter."""
    session.path.joinpath("session.yaml").write_text("{")
    for number in range(19):
        shutil.copytree(session.path, sessions_folder / f"s{number}", copy_function=os.link)
    code = """
import os, sys
from collections import Counter
from fastdb.commands import space
opened, listed = Counter(), Counter()
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and sys.argv[1] in str(arguments[0]):
        (opened if event == "open" else listed)[str(arguments[0])] += 1
sys.addaudithook(hook)
space.space()
print(sum(path.endswith("checkpoints") for path in listed), sum(opened.values()), max(listed.values()), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, str(sessions_folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr
    folders, opened, most = map(int, output.split())
    assert (folders, opened) == (20, 0)
    assert most <= 3


def gone(session: Session, kind: str) -> set[str]:
    """What `free` took, of the whole folder."""
    before = names(session.path)
    told = space.free(session, [kind], confirm=yes, report=ConsoleReport())
    after = names(session.path)
    assert after <= before
    assert (told > 0) == (before > after)
    return before - after


GONE = {
    "set-aside": {"checkpoints/set-aside-1/unet-000007/unet.safetensors"},
    "unfinished": {".dog.ckpt.123.part", "checkpoints/.unfinished-unet-000060/unet.safetensors"},
    "exports": {"dog.safetensors", "dog.ckpt", "dog_step_20.ckpt"},
    "samples": {"samples/unet-000010-1.png"},
    "class-images": {"class_images/class-0001.png"},
    "checkpoints": {
        f"checkpoints/{name}/{file}"
        for name in ("text_encoder-000001", "text_encoder-000002", "unet-000010", "unet-000020")
        for file in ("MANIFEST.json", "state.json", f"{name.rpartition('-')[0]}.safetensors")
    },
}


@pytest.mark.parametrize("kind", REMOVABLE)
def test_of_each_kind_goes_what_may_go(kind: str, session: Session) -> None:
    """Of the UNet's checkpoints 40 is damaged: 30 and 50 are the two that verify, and stay."""
    assert gone(session, kind) == GONE[kind]
    assert gone(session, kind) == set(), "and nothing more the next time"


def test_of_checkpoints_two_that_verify_stay_and_so_do_milestones(session: Session) -> None:
    session = session.with_config(session.config.changed({"checkpoints.keep_every": 20}))
    gone(session, "checkpoints")
    assert [one.path.name for one in complete(session.checkpoints, "unet")] == [
        f"unet-0000{step}" for step in (20, 30, 40, 50)
    ]
    for one in complete(session.checkpoints):
        assert (faults(one.path) == []) == (one.path.name != "unet-000040")


def test_the_checkpoint_that_the_evaluation_names_stays(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    (session.path / "evaluation").mkdir(exist_ok=True)
    (session.path / "evaluation" / "evaluation.json").write_text('{"picked": {"step": 10}}')
    gone(session, "checkpoints")
    assert [one.step for one in complete(session.checkpoints, "unet")] == [10, 30, 40, 50]
    assert gone(session, "checkpoints") == set()
    assert "newest valid checkpoints and the one of step 10, which the evaluation chose" in capsys.readouterr().out


def test_class_images_stay_while_checkpoints_need_them(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session = session.with_config(session.config.changed({"unet.steps": 60}))
    assert gone(session, "class-images") == set()
    assert "Class images cannot be deleted before training ends" in capsys.readouterr().out


def test_free_lists_files_and_asks_before_deleting(session: Session) -> None:
    before = names(session.path)
    for said in ("n\n", ""):
        done = fastdb("free", "dog", "--what", "exports", "--what", "set-aside", said=said)
        assert "exports: 3 files or folders, 90.0 kB" in done.stdout
        assert "  dog_step_20.ckpt  30.0 kB" in done.stdout
        assert "Delete 160 kB of dog for good?" in done.stdout + done.stderr
        assert names(session.path) == before
    done = fastdb("free", "dog", "--what", "exports", "--what", "set-aside", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Deleted 160 kB" in done.stdout
    assert before - names(session.path) == GONE["exports"] | GONE["set-aside"]
    assert fastdb("free", "dog", "--what", "exports", "--yes").stdout == "Nothing to delete: exports\n"


def test_nothing_goes_while_it_is_trained(session: Session) -> None:
    """A process of its own holds the right to train and says so, as a trainer does."""
    code = (
        "import sys; from pathlib import Path; from fastdb.training.process import training_lock; "
        "folder = Path(sys.argv[1])\n"
        "with training_lock(folder, folder / 'e'): print('held', flush=True); sys.stdin.readline()"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(session.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "held\n"
    before = names(session.path)
    for kind in REMOVABLE:
        with pytest.raises(SessionBusy, match="is being trained; nothing was deleted"):
            space.free(session, [kind], confirm=yes)
    with pytest.raises(SessionBusy, match="may need any of its models"):
        space.free_models(confirm=yes)
    assert names(session.path) == before
    trainer.communicate("\n")
    assert gone(session, "exports") == GONE["exports"]


def test_nothing_goes_that_changed_while_the_question_was_open(session: Session) -> None:
    def train_meanwhile(question: str) -> bool:
        flip(put(session, 70) / "unet.safetensors")
        return True

    before = names(session.path)
    with pytest.raises(SessionBusy, match="changed while the question was open"):
        space.free(session, ["checkpoints"], confirm=train_meanwhile)
    assert before <= names(session.path)

    def begin_to_train(question: str) -> bool:
        held.__enter__()
        return True

    held = training_lock(session.path)
    with pytest.raises(SessionBusy, match="another process is training this session"):
        space.free(session, ["checkpoints"], confirm=begin_to_train)
    held.__exit__(None, None, None)
    assert before <= names(session.path)


def test_what_cannot_be_removed_is_refused(session: Session) -> None:
    for what in ((), ("photos",), ("exports", "logs")):
        with pytest.raises(ConfigError, match="Name with --what one of set-aside, exports"):
            space.free(session, what, confirm=yes)
    for command in (["free"], ["free", "dog", "--models"], ["free", "--models", "--what", "exports"]):
        done = fastdb(*command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "needs either a session and --what, or --models" in done.stderr


def test_a_removal_that_fails_is_one_line(session: Session, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("2m")
    copied = shutil.copytree(session.path, disk / "dog")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = names(copied)
    for kind in ("exports", "checkpoints"):
        done = fastdb("free", copied, "--what", kind, "--yes")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {copied}")
        assert "the disk is read-only" in done.stderr
    assert names(copied) == before


def test_the_disk_has_the_space_again(session: Session, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("4m")
    copied = Session.open(shutil.copytree(session.path, disk / "dog"))
    put(copied, 60, size=1_000_000)
    free = shutil.disk_usage(disk).free
    (copied.path / "dog.ckpt").write_bytes(bytes(2_000_000))
    assert space.free(copied, ["exports"], confirm=yes) == 2_060_000
    assert shutil.disk_usage(disk).free >= free


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three models of a cache of this test's own, used one after the other."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "own cache"))
    made = {}
    for hours, name in enumerate(("old", "mid", "new")):
        folder = made[name] = place(f"https://example.org/{name}")
        with locked(folder):
            (folder / "model.safetensors").write_bytes(bytes(10_000))
            remember(folder, f"https://example.org/{name}", {"model.safetensors": folder / "model.safetensors"})
        for path in (folder, folder / ".fetched.json", folder.parent / f"{folder.name}.lock"):
            os.utime(path, (1e9 + 3600 * hours, 1e9 + 3600 * hours))
    return made


def order() -> list[str]:
    return [entry.source.rpartition("/")[2] for entry in entries()]


def test_models_go_by_their_last_use(models: dict[str, Path]) -> None:
    assert order() == ["old", "mid", "new"]
    note_use(models["old"] / "model.safetensors")
    assert order() == ["mid", "new", "old"]
    with locked(models["mid"]):
        pass
    assert order() == ["new", "old", "mid"]
    note_use(Path("/elsewhere/model"))
    done = fastdb("free", "--models", "--gb", "0.000015", "--yes")
    assert done.returncode == 0, done
    assert order() == ["mid"]
    assert "https://example.org/new" in done.stdout
    assert "of base models for good" in fastdb("free", "--models", said="n\n").stdout
    assert order() == ["mid"]
    assert space.free_models(confirm=yes) > 10_000
    assert space.free_models(confirm=yes) == 0


def test_a_model_that_is_being_fetched_stays(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from fastdb.downloads.model_cache import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(models["old"])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    space.free_models(confirm=yes, report=ConsoleReport())
    assert [path.exists() for path in models.values()] == [True, False, False]
    assert "Kept (download in progress): https://example.org/old" in capsys.readouterr().out
    other.communicate("\n")
    space.free_models(confirm=yes, report=ConsoleReport())
    assert not models["old"].exists()


def test_a_person_s_own_file_is_listed_as_a_converted_copy_and_stays(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from fastdb.models.convert import convert
    from fastdb.models.resolve import ensure_folder

    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "own-cache"))
    file = convert(mini, tmp_path / "mine.safetensors").path
    ensure_folder(file)
    [entry] = entries()
    assert entry.title == f"converted copy of {file}"
    assert f"models: converted copy of {file}" in fastdb("space").stdout
    done = fastdb("free", "--models", "--yes")
    assert f"converted copy of {file}" in done.stdout
    assert entries() == []
    assert file.is_file()


def test_a_look_at_a_model_is_no_use_of_it(models: dict[str, Path]) -> None:
    assert space.free_models(confirm=lambda question: False, wanted=1) == 0
    assert order() == ["old", "mid", "new"]


def test_costs_are_of_the_whole_folder_whatever_lies_there(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "unet-000001").write_bytes(b"a file of a checkpoint's name")
    (folder / "samples").write_bytes(b"a file where a folder was")
    assert sum(cost.bytes for cost in costs_of(folder)) == 29 + 25
