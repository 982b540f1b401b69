"""Session folders appear complete, are found again and are never overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import fastdb
from fastdb.config import Config
from fastdb.errors import ConfigError, FastDBError, SessionError, SessionExists, SessionNotFound, StorageError
from fastdb.sessions import session as session_module
from fastdb.sessions.session import Session, check_name
from fastdb.sessions.session_yaml import FILE, BaseModelRecord, Record, Subject, read_record

BASE = BaseModelRecord(folder="/models/some", fingerprint="0" * 64)
TEMPLATE = Path(__file__).resolve().parents[2] / "sessions_template"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, every folder with none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def make(name: str = "dog", **given: object) -> Session:
    return Session.create(name, base_model=BASE, **given)  # type: ignore[arg-type]


def test_a_new_session_equals_the_template() -> None:
    session = make()
    expected = tree(TEMPLATE)
    assert len(expected) == 14, "seven folders, each with a line about what it is for"
    assert session_module.TEMPLATE == TEMPLATE
    found = tree(session.path)
    assert found.pop(FILE)
    assert found == expected
    for name in ("originals", "instance_images", "captions", "class_images", "checkpoints", "samples", "logs"):
        assert getattr(session, name) == session.path / name
        assert (session.path / name).is_dir()


def test_folders_of_a_session_are_writable_even_if_the_template_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package is often read-only; new sessions must not inherit that."""
    import shutil

    installed = shutil.copytree(TEMPLATE, tmp_path / "installed")
    for path in (*installed.rglob("*"), installed):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr("fastdb.sessions.session.TEMPLATE", installed)
    session = make()
    for path in (session.path, *session.path.rglob("*")):
        assert path.stat().st_mode & 0o200, path


def test_what_was_given_is_kept_and_read_back(sessions_folder: Path) -> None:
    subject = Subject(token="sks", class_word="Hündin \N{DOG FACE}")
    config = Config().changed({"unet.steps": 7, "captions.instance_prompt": "no: 1e5"})
    made = make(subject=subject, config=config)
    assert made.path == sessions_folder / "dog"
    opened = Session.open("dog")
    assert opened == made
    assert opened.record.subject == subject
    assert opened.config == config
    assert opened.record.base_model == BASE
    assert opened.record.created.endswith("+00:00")


def test_a_session_opens_by_name_by_path_and_below_another_root(tmp_path: Path) -> None:
    session = make(root=tmp_path / "elsewhere")
    assert Session.open("dog", tmp_path / "elsewhere") == session
    assert Session.open(session.path) == session
    assert Session.open(str(session.path)) == session
    with pytest.raises(SessionNotFound):
        Session.open("dog")


def test_a_second_of_the_same_name_is_refused_and_nothing_touched() -> None:
    session = make()
    (session.instance_images / "photo.png").write_bytes(b"precious")
    before = tree(session.path)
    with pytest.raises(SessionExists, match=r"there is a session of this name already\. Open it \(fastdb show dog\)"):
        make(config=Config().changed({"unet.steps": 1}))
    assert tree(session.path) == before
    assert os.listdir(session.path.parent) == ["dog"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "folder"])
def test_anything_else_of_that_name_is_left_alone(kind: str, sessions_folder: Path) -> None:
    sessions_folder.mkdir()
    path = sessions_folder / "dog"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(SessionExists):
        make()
    assert os.listdir(sessions_folder) == ["dog"]
    assert path.is_symlink() == (kind == "dangling link")


RACER = """
import sys, time
from fastdb.errors import SessionExists
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.sessions.session import Session
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    try:
        Session.create(f"s{number}", base_model=BaseModelRecord(folder=sys.argv[1], fingerprint="0"))
        print("made", number)
    except SessionExists:
        print("there", number)
"""


def test_two_at_once_make_each_session_once(sessions_folder: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    said = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        said += racer.communicate()[0].splitlines()
        assert racer.returncode == 0
    assert sorted(line for line in said if line.startswith("made")) == sorted(f"made {n}" for n in range(20))
    assert sorted(os.listdir(sessions_folder)) == sorted(f"s{n}" for n in range(20))


def test_cut_at_each_point_there_is_no_session_or_a_whole_one(
    cut_everywhere: Callable[[str], list[Path]],
) -> None:
    folders = cut_everywhere("""
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.sessions.session import Session
def prepare(folder):
    pass
def work(folder):
    Session.create("dog", base_model=BaseModelRecord(folder="/m", fingerprint="0"), root=folder)
""")
    assert len(folders) > 20
    whole = [folder for folder in folders if (folder / "dog").exists()]
    assert folders[-1] in whole
    for folder in whole:
        session = Session.open("dog", folder)
        assert tree(session.path).keys() == {*tree(TEMPLATE), FILE}
    for folder in folders:
        assert [found.name for found in Session.list(folder)] == ["dog"] * (folder in whole)  # type: ignore[union-attr]
        made = Session.create("cat", base_model=BASE, root=folder)
        assert tree(made.path).keys() == {*tree(TEMPLATE), FILE}


@pytest.mark.parametrize("room", [0, 4, 12, 20, 28])
def test_a_full_disk_makes_nothing(room: int, small_disk: Callable[[str], Path]) -> None:
    """A session has eight files, so it takes 32 kB; `room` is what is left of the disk in kB."""
    disk = small_disk("1m")
    (disk / "other").write_bytes(bytes((1024 - room) * 1024))
    with pytest.raises(StorageError, match="the disk is full"):
        make(root=disk / "sessions" if room else disk)
    assert tree(disk).keys() <= {"other", "sessions"}
    (disk / "other").unlink()
    assert Session.open(make(root=disk / "sessions").path)


def test_a_root_that_cannot_be_is_said() -> None:
    for root in ("/proc/sessions", __file__, f"{__file__}/sessions"):
        with pytest.raises(StorageError):
            make(root=root)


@pytest.mark.parametrize(
    "name",
    ["dog", "my_dog", "Dog-2", "v1.5", "7", "Жучка", "犬" * 63, "été", "a" * 63, "a..b", "console", "com", "a_", "a-"],
)
def test_plain_names_are_taken(name: str, sessions_folder: Path) -> None:
    session = make(name)
    assert session.path == sessions_folder / name
    assert Session.open(name).name == name
    assert os.listdir(sessions_folder) == [name]


AWKWARD = [
    "", " ", ".", "..", "../x", "../../etc/passwd", "a/b", "/abs", "a/", "./a", "a\\b", "..\\x", "C:\\x", "C:x",
    ".hidden", "trailing.", "trailing ", " leading", "-rf", "--root", "_private", "a b", "a\tb", "a\nb", "a\n", "a\0b",
    "a:b", "a*b", "a?b", 'a"b', "a<b", "a>b", "a|b", "~", "~root", "$HOME", "a" * 64, "a" * 5000, "\udcff",
    "\N{DOG FACE}", "𐐀" * 60, "CON", "nul", "Aux.txt", "com1", "LPT9.tar.gz", "\u202egod", "a\u0301b", "a;b",
    "a&b", "{x}", "%2e%2e",
]  # fmt: skip


def test_awkward_names_are_refused_in_a_line_with_one_that_would_do(sessions_folder: Path) -> None:
    assert len(AWKWARD) >= 50
    sessions_folder.mkdir()
    for name in AWKWARD:
        with pytest.raises(SessionError, match="cannot be the name of a session") as caught:
            make(name)
        line = str(caught.value)
        assert line.isprintable(), name
        assert len(line) < 400, name
        words = caught.value.fix.split()
        check_name(words[1].rstrip(",") if words[0] == "Use" else "my_dog")
    assert list(sessions_folder.iterdir()) == []


def test_awkward_names_open_nothing(sessions_folder: Path) -> None:
    make("x")
    refused = 0
    for name in AWKWARD:
        with pytest.raises(FastDBError) as caught:
            Session.open(name)
        assert str(caught.value).isprintable()
        refused += 1
    assert refused == len(AWKWARD)
    with pytest.raises(FastDBError):
        Session.open("/" + "a" * 300)
    with pytest.raises(FastDBError):
        Session.open("/no/such/session")


def test_one_that_is_not_there_is_said_with_the_nearest(sessions_folder: Path) -> None:
    with pytest.raises(SessionNotFound, match="Create it with: fastdb new my_dog"):
        Session.open("my_dog")
    make("my_dog")
    with pytest.raises(
        SessionNotFound,
        match=rf"^my_dgo: there is no session of this name in {sessions_folder}\. Did you mean my_dog\?",
    ):
        Session.open("my_dgo")
    with pytest.raises(SessionNotFound, match="List the sessions with: fastdb sessions"):
        Session.open("zebra")


def test_a_copied_folder_is_a_session_of_its_new_name(sessions_folder: Path) -> None:
    """What is told to a person must name the folder they would open: two were called `dog` once."""
    make()
    (sessions_folder / "dog").rename(sessions_folder / "hound")
    make()
    assert [session.name for session in Session.list()] == ["dog", "hound"]  # type: ignore[union-attr]
    assert Session.open("hound").name == "hound"


def test_a_broken_session_among_good_ones_hides_none(sessions_folder: Path) -> None:
    for name in ("a", "b", "c", "d"):
        make(name)
    (sessions_folder / "b" / FILE).write_text("format: [")
    (sessions_folder / "c" / FILE).unlink()
    (sessions_folder / ".hidden").mkdir()
    (sessions_folder / "a file").touch()
    found = list(Session.list())
    assert [getattr(each, "name", str(each)) for each in found if isinstance(each, Session)] == ["a", "d"]
    broken = [str(each) for each in found if isinstance(each, FastDBError)]
    assert len(broken) == 2
    assert broken[0].startswith(f"{sessions_folder / 'b' / FILE} cannot be read as YAML (line ")
    assert "it contains no session.yaml, so it is not a session" in broken[1]


def test_no_folder_of_sessions_is_an_empty_list(tmp_path: Path) -> None:
    assert list(Session.list(tmp_path / "none")) == []


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, forbidden: list[str]) -> None:
    make(root=tmp_path / "theirs")
    (tmp_path / "theirs").chmod(0o000)
    script = """
import sys
from fastdb.errors import StorageError
from fastdb.sessions.session import Session
for attempt in (lambda: list(Session.list(sys.argv[1])), lambda: Session.open("dog", sys.argv[1]),
                lambda: Session.open(sys.argv[1] + "/dog")):
    try:
        attempt()
    except StorageError as error:
        print(error)
"""
    command = [*forbidden, sys.executable, "-c", script, str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / "theirs").chmod(0o755)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3


class TestRecord:
    """`session.yaml`, written by us or bent by hand."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("format: 1\n  name: [", "cannot be read as YAML (line 2)"),
            ("\tformat: 1", "cannot be read as YAML (line 1)"),
            ("", "has no format number"),
            ("- 1\n- 2\n", "has no format number"),
            ("name: dog\n", "has no format number"),
            ("format: 5\n", "reads formats 1 to 4. Update fastdb"),
            ("format: '1'\n", "has format '1'"),
            ("format: 1\ncreated: 2026-13-45\n", "cannot be read as YAML"),
            ("format: 1\n? [a]\n: b\n", "cannot be read as YAML"),
            ("[" * 5000, "cannot be read as YAML"),
            ("format: 1\nname: dog\n", "created is missing; base_model is missing."),
        ],
    )
    def test_a_damaged_one_is_said_and_kept(self, text: str, said: str) -> None:
        session = make()
        path = session.path / FILE
        path.write_text(text)
        before = tree(session.path)
        with pytest.raises(FastDBError) as caught:
            Session.open("dog")
        assert str(caught.value).startswith((f"{path}: ", f"{path} "))
        assert said in str(caught.value)
        assert str(caught.value).isprintable()
        assert tree(session.path) == before

    def test_bytes_that_are_no_text_are_said_and_kept(self) -> None:
        path = make().path / FILE
        path.write_bytes(b"format: 1\nname: \xff\xfe\n")
        with pytest.raises(SessionError, match="cannot be read as YAML"):
            Session.open("dog")
        assert path.read_bytes() == b"format: 1\nname: \xff\xfe\n"

    def test_no_flipped_byte_makes_anything_but_a_record_or_a_line(self) -> None:
        path = make(config=Config().changed({"samples.prompts": ["a", "b: c"]})).with_run_begun("x").path / FILE
        data, refused = path.read_bytes(), 0
        for position in range(0, len(data), 3):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            line = ""
            try:
                read_record(path.parent)
            except FastDBError as error:
                line = str(error)
            assert line.isprintable()
            refused += bool(line)
        assert refused > 100

    def test_unknown_settings_are_all_named_with_the_nearest(self) -> None:
        path = make().path / FILE
        data = yaml.safe_load(path.read_text())
        data["config"]["unet"]["stpes"] = data["config"]["unet"].pop("steps")
        data["config"]["resolution"] = 500
        path.write_text(yaml.safe_dump(data))
        with pytest.raises(ConfigError) as caught:
            Session.open("dog")
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert "there is no setting config.unet.stpes (did you mean config.unet.steps?)" in line
        assert "config.resolution is 500, but must be a multiple of 64, such as 448 or 512" in line

    def test_settings_typed_by_hand_are_taken(self) -> None:
        """`2e-6` is text to YAML 1.1, and it is what everybody types."""
        path = make().path / FILE
        assert "learning_rate: 2.0e-06" in path.read_text()
        path.write_text(path.read_text().replace("learning_rate: 2.0e-06", "learning_rate: 5e-6"))
        assert Session.open("dog").config.unet.learning_rate == 5e-6
        assert Session.open("dog").config.text_encoder.learning_rate == 1e-6

    @pytest.mark.parametrize(
        "word", ["no", "1e5", "null", "~", "0x1F", "2026-11-20", "a: b", "#x", " x ", "'", "\\", "é"]
    )
    def test_words_come_back_as_they_were(self, word: str) -> None:
        make(subject=Subject(token=word, class_word=word))
        assert Session.open("dog").record.subject == Subject(token=word, class_word=word)

    def test_runs_are_noted(self) -> None:
        session = make().with_run_begun("text_encoder step 0")
        assert Session.open("dog").record.runs[0].outcome == ""
        session = session.with_run_ended("stopped").with_run_begun("unet step 4")
        runs = Session.open("dog").record.runs
        assert [(run.begins, run.outcome) for run in runs] == [("text_encoder step 0", "stopped"), ("unet step 4", "")]
        assert runs[0].ended >= runs[0].started
        assert session.record == Session.open("dog").record

    def test_the_format_is_held(self) -> None:
        """Changing what lies on people's disks needs a new number and a way to read the old one."""
        text = (make().path / FILE).read_text()
        head = ["format", "written_by", "name", "created", "lineage", "inherited", "base_model", "subject"]
        assert list(yaml.safe_load(text)) == [
            *head,
            "class_article",
            "config",
            "runs",
            "extended",
            "revised",
            "exports",
        ]
        assert text.startswith(f"format: 4\nwritten_by: fastdb {fastdb.__version__}\nname: dog\n")
        assert Record.model_fields["format"].default == 4


@pytest.mark.parametrize(
    ("word", "prompt"),
    [
        ("dog", "a photo of a dog"),
        ("Apple", "a photo of an Apple"),
        ("old man", "a photo of an old man"),
        ("the sea", "a photo of the sea"),
        ("\u00e9cureuil", "a photo of a \u00e9cureuil"),
        ("", "a photo of"),
    ],
)
def test_the_default_class_prompt_has_an_article(word: str, prompt: str) -> None:
    session = Session.create("it", base_model=BASE, subject=Subject(class_word=word))
    assert session.class_prompts == (prompt,)
    assert session.with_config(Config().changed({"prior.prompts": "dogs"})).class_prompts == ("dogs",)
