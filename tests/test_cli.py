"""The command line in real processes, its output and its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fastdb.checkpoints.checkpoint import complete
from fastdb.cli import app
from fastdb.runtime.paths import work_folder
from fastdb.sessions.session import Session
from fastdb.storage.manifest import faults
from fastdb.training.process import is_training, start

FASTDB = [sys.executable, "-m", "fastdb"]
SMALL = ["--set", "resolution=64", "--set", "text_encoder.steps=60", "--set", "unet.steps=20"]

BAR = re.compile(r"[\w.]+: .*\[.*\]")
"""What tqdm shows of a task."""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line it ended with: nothing else on stderr but a progress bar, exit code 2, no traceback."""
        lines = [line.strip() for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        assert self.code == 2, self
        assert lines, self
        assert lines[-1].startswith("error: "), self
        assert all(BAR.fullmatch(line) for line in lines[:-1]), self
        assert "Traceback" not in self.out + self.err
        return lines[-1]


def fastdb(*arguments: object, before: list[str] | None = None, **environment: str) -> Done:
    done = subprocess.run(
        [*(before or []), *FASTDB, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def tree(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file and folder with its bytes, but for those `without`."""
    return {
        name: path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not (name := path.relative_to(folder).as_posix()).startswith(without or ("\0",))
    }


@pytest.fixture(scope="module")
def made(mini: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session as `fastdb new` makes it, in a folder that tests only copy from."""
    root = tmp_path_factory.mktemp("made")
    words = ["--token", "sks", "--class", "cup"]
    done = fastdb("new", "cup", photos[2], "--base", mini, *words, *SMALL, "--root", root)
    assert (done.code, "error" in done.err) == (0, False), done
    assert f"New session: {root / 'cup'}" in done.out
    assert "Instance prompt: 'a photo of sks cup', from the token and the class word" in done.out
    return root / "cup"


@pytest.fixture
def session(made: Path, sessions_folder: Path) -> Path:
    """That session in this test's own folder."""
    return shutil.copytree(made, sessions_folder / "cup")


@pytest.fixture(scope="module")
def no_trainer_left() -> Iterator[list[Path]]:
    """Sessions whose trainer is ended if a test went wrong."""
    sessions: list[Path] = []
    yield sessions
    for session in sessions:
        told = json.loads((work_folder(session) / "current.json").read_text())
        mine = Path(f"/proc/{told['pid']}/cmdline")
        if mine.exists() and b"fastdb.training" in mine.read_bytes():
            os.kill(told["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory, no_trainer_left: list[Path]) -> Path:
    """A session trained by `fastdb train` that was interrupted once, and whose terminal was closed once.

    What is said and left behind is asserted here, on the way.
    """
    session = shutil.copytree(made, tmp_path_factory.mktemp("trained") / "cup")
    no_trainer_left.append(session)

    first = start_training(session)
    wait_for(session, lambda event: event["event"] == "step" and event["step"] >= 3)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C goes to everything that runs in the terminal
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "Stopping: saving a checkpoint first" in out
    assert out.endswith(f"Training stopped. Resume with: fastdb train {session.name}\n")
    assert "Traceback" not in err
    [stopped] = complete(session / "checkpoints")
    assert 3 <= stopped.step < 60
    assert Session.open(session).record.runs[-1].outcome == "stopped"

    second = start_training(session)
    wait_for(session, lambda event: event["event"] == "step" and event["step"] > stopped.step)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    end = wait_for(session, lambda event: event["event"] == "end")
    assert end["outcome"] == "finished"
    history = Session.open(session).record.runs
    assert [run.outcome for run in history] == ["stopped", "finished"]
    assert history[1].begins == f"text_encoder step {stopped.step}"
    return session


def test_ctrl_c_in_the_first_moment_means_the_trainer(made: Path, tmp_path: Path, no_trainer_left: list[Path]) -> None:
    """It once printed that training was stopped, while the trainer went on."""
    session = shutil.copytree(made, tmp_path / "cup")
    no_trainer_left.append(session)
    first = start_training(session)
    while not (work_folder(session) / "current.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, (out, err)
    assert not is_training(session)


def test_ctrl_c_leaves_a_trainer_that_is_only_followed(made: Path, tmp_path: Path, no_trainer_left: list[Path]) -> None:
    session = shutil.copytree(made, tmp_path / "cup")
    no_trainer_left.append(session)
    first = start_training(session)
    wait_for(session, lambda event: event["event"] == "step")
    second = start_training(session)
    assert second.stdout is not None
    assert "following it" in second.stdout.readline()
    time.sleep(0.5)
    os.killpg(second.pid, signal.SIGINT)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "Training continues in process" in out
    assert is_training(session)
    assert fastdb("stop", session).code == 0
    first.communicate(timeout=120)
    assert first.returncode == 3, "stopped from elsewhere"


def start_training(session: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*FASTDB, "train", str(session)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and its children inherit that; a terminal's do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(session: Path, wanted: Callable[[dict], bool], seconds: float = 60) -> dict:
    """The first event of the newest run that is wanted."""
    from fastdb.sessions.events import read_events

    deadline, folder = time.monotonic() + seconds, work_folder(session)
    while time.monotonic() < deadline:
        for run in sorted(folder.glob("run-*.jsonl"))[-1:]:
            for event in read_events(run):
                if wanted(event):
                    return event
        time.sleep(0.02)
    raise AssertionError(f"waited in vain: {sorted(folder.iterdir())}")


def test_every_verb_has_its_help() -> None:
    verbs = [(one.name or one.callback.__name__).replace("_", "-") for one in app.registered_commands]  # type: ignore[union-attr]
    expected = [
        "demo",
        "new",
        "change",
        "sessions",
        "show",
        "check",
        "add-images",
        "remove-images",
        "train",
        "try-token",
        "extend",
        "stop",
        "publish",
    ]
    expected += [
        "export",
        "convert",
        "generate",
        "evaluate",
        "merge",
        "extract",
        "inspect",
        "rename",
        "delete",
        "space",
        "free",
        "doctor",
    ]
    expected += ["share", "adopt", "duplicate"]
    assert verbs == expected
    whole = fastdb("--help")
    assert (whole.code, whole.err) == (0, "")
    for verb in verbs:
        assert f"  {verb} " in whole.out
        done = fastdb(verb, "--help")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: fastdb {verb} ") or f" {verb} " in done.out.splitlines()[0]
        summary = next(line for line in whole.out.splitlines() if line.startswith(f"  {verb} ")).split(maxsplit=1)[1]
        assert f"\n\n  {summary}" in done.out


def test_the_version_is_shown() -> None:
    from fastdb import __version__

    assert fastdb("--version") == Done(0, f"fastdb {__version__}\n", "")


def test_sessions_and_show_say_what_is_there(session: Path, sessions_folder: Path) -> None:
    (sessions_folder / "broken").mkdir()
    listed = fastdb("sessions")
    assert (listed.code, listed.err) == (0, "")
    lines = listed.out.splitlines()
    assert lines[0] == f"1 session in {sessions_folder}"
    assert re.split(" {2,}", lines[2])[:3] == ["cup", "text_encoder 0/60, unet 0/20", "1"]
    assert lines[3].startswith(f"Cannot open: {sessions_folder / 'broken'}: it contains no session.yaml")
    shown = fastdb("show", "cup")
    assert (shown.code, shown.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in shown.out.splitlines() if "  " in line)
    assert facts["instance images"].strip() == "1"
    assert facts["subject"].strip() == "sks cup"
    assert fastdb("show", session).out == shown.out


@pytest.fixture
def bad(photos: list[Path], tmp_path: Path) -> Path:
    """Things that are no photos."""
    from PIL import Image

    folder = tmp_path / "bad"
    (folder / "empty").mkdir(parents=True)
    (folder / "text.jpg").write_text("this is not a photo")
    Image.open(photos[0]).save(folder / "whole.jpeg")
    data = (folder / "whole.jpeg").read_bytes()
    (folder / "whole.jpeg").unlink()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "none.jpg").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.jpg", "the file is not a supported image"),
        ("cut.jpg", "the file is damaged"),
        ("none.jpg", "the file is empty (0 bytes)"),
    ],
)
def test_a_bad_photo_is_named_and_changes_nothing(name: str, reason: str, bad: Path, session: Path) -> None:
    before = tree(session)
    done = fastdb("add-images", "cup", bad / name)
    assert done.error.startswith("error: cup: 1 of 1 photos cannot be used; 0 were added. ")
    assert f"Skipping photo {bad / name}: {reason}" in done.out
    assert tree(session) == before


def test_good_photos_among_bad_ones_come_in(bad: Path, session: Path, photos: list[Path]) -> None:
    done = fastdb("add-images", "cup", bad / "cut.jpg", photos[0], bad / "text.jpg")
    assert "2 of 3 photos cannot be used; 1 was added" in done.error
    assert f"Skipping photo {bad / 'cut.jpg'}: " in done.out
    assert sorted(path.name for path in (session / "originals").glob("*.*g")) == ["cat.png", "cup.png"]
    assert (session / "instance_images" / "cat.png").is_file()


SAID = [
    (["add-images", "cup", "{bad}/empty"], "{bad}/empty: the folder contains no photos. Add JPEG, PNG or WebP files."),
    (["add-images", "cup", "{bad}/gone.jpg"], "{bad}/gone.jpg: there is no such file or folder. Check the spelling"),
    (["add-images", "cap", "{bad}"], "cap: there is no session of this name in {root}. Did you mean cup?"),
    (["show", "zebra"], "zebra: there is no session of this name in {root}. List the sessions with: fastdb sessions"),
    (["train", "zebra"], "zebra: there is no session of this name in {root}. List the sessions with: fastdb sessions"),
    (["extend", "cup", "--steps", "0"], "steps is 0, but must be at least 1. Correct this and run"),
    (["generate", "cup", "a cup", "--count", "0"], "count 0 is not between 1 and 1000. Try 1."),
    (["convert", "{bad}/text.jpg", "{bad}/out.foo"], "{bad}/out.foo has the unknown suffix .foo. Use .safetensors or"),
    (["extend", "cup", "--steps", "5", "--learning-rate", "1"], "learning_rate is 1.0, but must be at most 0.1"),
    (["extend", "cup", "--steps", "5", "--rate", "1"], "learning_rate is 1.0, but must be at most 0.1"),
    (["extend", "zebra", "--steps", "5"], "zebra: there is no session of this name in {root}."),
    (["stop", "zebra"], "zebra: there is no session of this name in {root}. List the sessions with: fastdb sessions"),
    (["export", "cpu"], "cpu: there is no session of this name in {root}. Did you mean cup?"),
    (["generate", "cpu", "a cup"], "cpu: there is no session of this name in {root}. Did you mean cup?"),
    (["new", "../no-session"], "'../no-session' cannot be the name of a session: "),
    (["show", "../no-session"], "../no-session: there is no session of this name in {root}. List the sessions with"),
    (["train", "../cup"], "../cup: there is no session of this name in {root}. Did you mean cup?"),
    (["generate", "../cup", "a cup"], "../cup: there is no session of this name in {root}. Did you mean cup?"),
    (["new", "cup"], "{root}/cup: there is a session of this name already. Open it (fastdb show cup)"),
    (["new", "x", "--base", "mini", "--set", "resolution=500"], "resolution is 500, but must be a multiple of 64"),
    (["train", "cup", "--set", "resolution=500"], "resolution is 500, but must be a multiple of 64"),
    (["train", "cup", "--set", "unet.stpes=5"], "there is no setting unet.stpes (did you mean unet.steps?)."),
    (["new", "x", "--base", "mini", "--set", "unet.stpes=5", "--set", "seed=-1"], "seed is -1, but must be at least 0"),
    (["train", "cup", "--set", "foo"], "'foo' is not a setting and a value. Write it as --set unet.steps=800."),
    (["train", "cup", "--set", "unet.steps=2026-13-45"], "unet.steps is '2026-13-45', but must be a whole number"),
    (["new", "x", "--base", "{bad}/gone"], "{bad}/gone: there is no such file or folder. Give a Stable Diffusion 1.x"),
    (["new", "x", "--base", "{bad}"], "{bad}"),
    (["new", "x", "{bad}/empty", "--base", "mini"], "{bad}/empty: the folder contains no photos."),
    (["new", "x", "--base", "mini", "--root", "/proc/x"], "/proc/x: a folder cannot be created here. Choose another"),
    (["new", "x", "--base", "mini", "--root", "{bad}/text.jpg"], "{bad}/text.jpg is not a folder. Choose another"),
    (["generate", "cup", "a cup", "--sampler", "euler b"], "sampler 'euler b': there is no such sampler. Did you mean"),
    (["export", "cup"], "cup: there is no valid checkpoint to export. Train it first: "),
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), SAID, ids=[" ".join(command) for command, _ in SAID])
def test_a_mistake_is_answered_in_one_line_and_changes_nothing(
    command: list[str], said: str, bad: Path, session: Path, sessions_folder: Path
) -> None:
    before = tree(sessions_folder)
    done = fastdb(*(word.format(bad=bad) for word in command))
    assert done.error.startswith("error: " + said.format(bad=bad, root=sessions_folder)), done.error
    assert done.err.count("\n") == 1
    assert tree(sessions_folder) == before


def test_every_mistake_has_its_case() -> None:
    assert len(SAID) >= 25


def test_a_session_is_extended(session: Path) -> None:
    done = fastdb("extend", "cup", "--steps", "20", "--schedule", "hold", "--rate", "1e-5")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "Extended cup after step 20 by 20 steps, hold at 1e-05: 40 steps in all. Train them with: fastdb train cup\n"
    )
    done = fastdb("show", "cup")
    assert "text_encoder 0/60, unet 0/40" in done.out
    for wrong in (["--schedule", "cosine", "--steps", "5"], []):
        done = fastdb("extend", "cup", *wrong)
        assert (done.code, "Traceback" in done.err) == (2, False)
    assert Session.open(session).config.unet.all_steps == 40


def test_a_base_model_that_is_gone_is_said_and_nothing_changes(session: Path, mini: Path, tmp_path: Path) -> None:
    gone = tmp_path / "model"
    path = session / "session.yaml"
    assert str(mini) in path.read_text()
    path.write_text(path.read_text().replace(str(mini), str(gone)))
    (session / "checkpoints" / "unet-000001").mkdir()
    before = tree(session)
    line = (
        f"error: {gone}: there is no such file or folder. Put the base model of cup back there, or write its new "
        f"place into {path}."
    )
    train = ["train", "cup"]
    for command in (
        train,
        [*train, "--restart"],
        [*train, "--restart", "--set", "unet.steps=3"],
        ["generate", "cup", "a cup"],
    ):
        assert fastdb(*command).error == line
        assert tree(session) == before


def test_a_base_model_has_to_be_named_and_mini_gets_the_settings_that_fit_it(sessions_folder: Path) -> None:
    words = ["--token", "sks", "--class", "mug", "--set", "unet.steps=9"]
    refused = fastdb("new", "x", *words)
    assert "no base model was chosen. Choose sd15 (Stable Diffusion 1.5)" in refused.error
    assert not sessions_folder.exists()
    done = fastdb("new", "x", "--base", "mini", *words)
    assert done.code == 0, done
    session = Session.open("x")
    assert session.record.base_model.folder == "mini", "by its name: the package lies elsewhere on the next machine"
    assert (session.config.resolution, session.config.unet.steps) == (64, 9)
    assert session.config.prior.class_images > 0
    assert "a photo of a mug" in session.class_prompts
    assert re.search(r"^base model +mini$", fastdb("show", "x").out, re.MULTILINE)


def test_a_session_without_photos_is_not_trained(session: Path) -> None:
    (session / "instance_images" / "cup.png").unlink()
    before = tree(session)
    done = fastdb("train", "cup", "--set", "unet.steps=3")
    assert done.error.startswith(
        f"error: {session / 'instance_images'}: the folder has no instance images. Run add-images"
    )
    assert tree(session) == before


def test_a_prompt_may_look_like_yaml(sessions_folder: Path) -> None:
    done = fastdb(
        "new",
        "x",
        "--base",
        "mini",
        "--set",
        "captions.instance_prompt=sks: the cup",
        "--set",
        "samples.prompts=[a, 'b: c']",
    )
    assert done.code == 0, done
    config = Session.open("x").config
    assert config.captions.instance_prompt == "sks: the cup"
    assert config.samples.prompts == ("a", "b: c")


def test_a_read_only_session_is_said_and_can_be_looked_at(
    trained: Path, sessions_folder: Path, forbidden: list[str]
) -> None:
    session = shutil.copytree(trained, sessions_folder / "cup")
    for path in (session, *session.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(session)
    for command in (
        ["train", "cup"],
        ["train", "cup", "--restart"],
        ["train", "cup", "--set", "checkpoints.every_steps=7"],
        ["export", "cup", "--format", "ckpt"],
    ):
        error = fastdb(*command, before=forbidden).error
        assert error.startswith(f"error: {session}"), command
        assert "permission denied. Make the folder writable" in error
        assert tree(session) == before
    for command in (["sessions"], ["show", "cup"]):
        assert fastdb(*command, before=forbidden).code == 0
    sessions_folder.chmod(0o555)
    assert "permission denied" in fastdb("new", "x", "--base", "mini", before=forbidden).error
    sessions_folder.chmod(0o755)
    for path in (session, *session.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def fill(disk: Path, leave: int = 0) -> None:
    """Fill a disk but for `leave` bytes."""
    free = shutil.disk_usage(disk).free - leave
    (disk / "filling").write_bytes(bytes(max(free, 0)))


def test_a_full_disk_makes_no_session(small_disk: Callable[[str], Path], photos: list[Path]) -> None:
    disk = small_disk("1m")
    fill(disk, leave=16384)
    done = fastdb("new", "x", photos[0], "--base", "mini", "--root", disk)
    assert "the disk is full; existing files are unchanged. Free some space" in done.error
    assert os.listdir(disk) == ["filling"]


@pytest.mark.parametrize("leave", [0, 100_000])
def test_a_full_disk_takes_no_photo(
    leave: int, made: Path, photos: list[Path], small_disk: Callable[[str], Path]
) -> None:
    """`leave` lets nothing in at all, or nothing but a part."""
    disk = small_disk("4m")
    session = shutil.copytree(made, disk / "cup")
    fill(disk, leave)
    before = tree(session)
    done = fastdb("add-images", session, photos[1])
    assert "the disk is full" in done.error
    assert tree(session) == before


def test_a_photo_cut_off_by_a_full_disk_comes_in_whole_the_next_time(
    made: Path, photos: list[Path], small_disk: Callable[[str], Path]
) -> None:
    """There is room for the untouched photo and none for the square of it: nothing old changes, none is half in."""
    disk = small_disk("4m")
    session = shutil.copytree(made, disk / "cup")
    fill(disk, leave=-(-photos[1].stat().st_size // 4096) * 4096 + 4096)
    before = tree(session)
    assert "the disk is full" in fastdb("add-images", session, photos[1]).error
    after = tree(session)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() <= {"originals/astronaut.png"}
    (disk / "filling").unlink()
    assert fastdb("add-images", session, photos[1]).code == 0
    new = tree(session).keys() - before.keys()
    assert new == {"originals/astronaut.png", "instance_images/astronaut.png"}


def test_a_checkpoint_that_does_not_fit_leaves_the_others(
    made: Path, small_disk: Callable[[str], Path], no_trainer_left: list[Path]
) -> None:
    """The text encoder's checkpoint fits, the UNet's, which is eight times as large, does not: told before it begins.

    Begun all the same, as when something else fills the disk meanwhile, it loses nothing.
    """
    session = shutil.copytree(made, small_disk("14m") / "cup")
    no_trainer_left.append(session)
    before = tree(session)
    steps = {"text_encoder.steps": 2, "unet.steps": 2}
    done = fastdb("train", session, *(word for name in steps for word in ("--set", f"{name}={steps[name]}")))
    assert re.match(
        r"error: cup: the first checkpoints need \d\d\.\d MB \(text_encoder \d\.\d MB, unet \d\d", done.error
    )
    assert "Free some: fastdb free cup" in done.error
    assert tree(session) == before
    opened = Session.open(session)
    *_, end = start(opened.with_config(opened.config.changed({**steps, "checkpoints.patience_minutes": 0.02}))).follow()
    assert end["outcome"] == "failed"
    assert "unet-000002 could not be published, so it exists on this machine only, in " in end["message"]
    assert "the disk is full; existing files are unchanged" in end["message"]
    assert sorted(os.listdir(session / "checkpoints")) == ["README.txt", "text_encoder-000002"]
    assert faults(session / "checkpoints" / "text_encoder-000002") == []
    changing = (".files.json", "session.yaml", "logs", "checkpoints/text_encoder-000002")
    assert tree(session, changing) == {name: data for name, data in before.items() if not name.startswith(changing)}
    assert Session.open(session).config.unet.steps == 2


def test_an_export_that_does_not_fit_leaves_the_old_one(trained: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("96m")
    session = shutil.copytree(trained, disk / "cup")
    (session / "cup.safetensors").write_bytes(b"the export of yesterday")
    (session / "cup.ckpt").write_bytes(b"the export of yesterday")
    fill(disk, leave=3_000_000)
    before = tree(session)
    for kind in ("safetensors", "ckpt"):
        done = fastdb("export", session, "--format", kind)
        assert "the disk is full; existing files are unchanged. Free some space" in done.error
        assert tree(session) == before


def test_an_interrupted_and_orphaned_training_ends_whole_and_is_exported(trained: Path, sessions_folder: Path) -> None:
    session = shutil.copytree(trained, sessions_folder / "cup")
    for checkpoint in complete(session / "checkpoints"):
        assert faults(checkpoint.path) == []
    assert {checkpoint.path.name for checkpoint in complete(session / "checkpoints")} >= {
        "text_encoder-000060",
        "unet-000020",
    }
    assert "text_encoder 60/60, unet 20/20" in fastdb("show", "cup").out
    done = fastdb("export", "cup")
    assert done.code == 0, done
    assert "Exporting cup: text_encoder 60/60, unet 20/20" in done.out
    assert (session / "cup.safetensors").is_file()
    assert (session / "cup.ckpt").is_file()


def test_stopping_what_does_not_run_is_said(session: Path) -> None:
    assert fastdb("stop", "cup") == Done(0, "cup is not being trained on this machine\n", "")


def test_a_value_is_read_by_its_settings_kind() -> None:
    """A word that looks like a number or a truth value stays a word where a word is wanted, and is none elsewhere."""
    from fastdb.config import Config, parse_settings
    from fastdb.errors import ConfigError

    pairs = ["captions.instance_prompt=123", "prior.prompts=yes", "unet.steps=800", "unet.learning_rate=2e-6"]
    config = Config().changed(parse_settings([*pairs, "gradient_checkpointing=true", "samples.prompts=[a cat, a dog]"]))
    assert (config.captions.instance_prompt, config.prior.prompts) == ("123", ("yes",))
    assert (config.unet.steps, config.unet.learning_rate) == (800, 2e-6)
    assert config.gradient_checkpointing is True
    assert config.samples.prompts == ("a cat", "a dog")
    assert parse_settings(["unet.steps=800", "unet.steps=900"]) == {"unet.steps": "900"}, "the last one holds"
    for wrong in ("unet.steps=true", "samples.prompts=[a cat"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            Config().changed(parse_settings([wrong]))


def test_threads_of_torch_leave_shared_cores_to_others() -> None:
    """Set before torch is imported; measured with another process on each core, mini drew 16 times as fast."""
    found = {}
    for given in (None, "ACTIVE"):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        code = "import os, sys; sys.argv = ['fastdb', '--version']\nfrom fastdb.cli import main\ntry: main()\n"
        code += "except SystemExit: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | ({"OMP_WAIT_POLICY": given} if given else {}),
            capture_output=True,
            text=True,
            check=True,
        )
        found[given] = done.stdout.splitlines()[-1]
    assert found == {None: "False PASSIVE", "ACTIVE": "False ACTIVE"}
