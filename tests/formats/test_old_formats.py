"""Samples of every earlier format open (README.md describes them)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastdb import __version__
from fastdb.checkpoints.checkpoint import complete, newest
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.retention import retention
from fastdb.commands import sessions, sharing
from fastdb.errors import SessionError
from fastdb.sessions import session_yaml
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE, WRITER, read_record, write_record
from fastdb.storage.manifest import faults

SAMPLES = Path(__file__).resolve().parent
LINEAGE = hashlib.sha256(
    b"2026-11-27T08:50:04+00:00\n551b738786c7fd98f7d5b9c7bfcb2dc94866923eb76411bfac83fe3d3fcb66c9"
).hexdigest()[:32]
"""Of the session of format 1: it must be the same on every machine and in every version."""


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def first(tmp_path: Path) -> Session:
    """A session of format 1, in a folder of its own."""
    return Session.open(shutil.copytree(SAMPLES / "session-1", tmp_path / "sessions" / "cup"))


def test_every_step_has_its_sample() -> None:
    assert sorted(session_yaml.MIGRATIONS) == list(range(1, session_yaml.FORMAT))
    for number in session_yaml.MIGRATIONS:
        data = yaml.safe_load((SAMPLES / f"session-{number}" / FILE).read_text(encoding="utf-8"))
        assert data["format"] == number
        before = yaml.safe_dump(data)
        assert session_yaml.MIGRATIONS[number](data)["format"] == number + 1
        assert yaml.safe_dump(data) == before, "the old data stays as it is"


def test_a_session_of_format_1_opens_with_everything_in_it() -> None:
    before = tree(SAMPLES)
    record, data = read_record(SAMPLES / "session-1"), yaml.safe_load((SAMPLES / "session-1" / FILE).read_text())
    assert (record.format, record.written_by, record.lineage) == (4, "", LINEAGE)
    now = record.model_dump(
        mode="json",
        exclude={"format", "written_by", "lineage", "inherited", "extended", "exports", "revised", "class_article"},
    )
    assert now.pop("base_model") == data["base_model"] | {"configurations": {}}
    assert now | {"config": None} == {name: data[name] for name in now} | {"config": None}
    data["config"]["captions"]["caption_dropout"] = data["config"]["captions"].pop("dropout")
    for group, settings in data["config"].items():
        found = now["config"][group]
        assert (found if not isinstance(settings, dict) else {name: found[name] for name in settings}) == settings
    assert ([run.outcome for run in record.runs], record.extended) == (["finished"], ())
    assert read_record(SAMPLES / "session-1") == record
    assert tree(SAMPLES) == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_old_session_keeps_its_caption_dropout_and_its_default_class_prompt(number: int, tmp_path: Path) -> None:
    path = shutil.copytree(SAMPLES / f"session-{number}", tmp_path / "cup")
    data, session = yaml.safe_load((path / FILE).read_text(encoding="utf-8")), Session.open(path)
    captions, word = session.config.captions, session.record.subject.class_word
    assert (captions.caption_dropout, captions.dropout) == (data["config"]["captions"]["dropout"], 0)
    session = session.with_config(session.config.changed({"prior.prompts": []}))
    assert Session.open(path).class_prompts == session.class_prompts == (f"a photo of {word}",)
    assert Session.open(sharing.duplicate(path, "copy", root=tmp_path).path).class_prompts == (f"a photo of {word}",)


def test_an_old_session_opens_on_a_read_only_disk(first: Session, forbidden: list[str]) -> None:
    for path in (*first.path.rglob("*"), first.path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = """
import sys
from fastdb import interactive
from fastdb.errors import StorageError
session = interactive.show(sys.argv[1])
try:
    session.with_run_begun("unet step 4")
except StorageError as error:
    print(error.what)
"""
    command = [*forbidden, sys.executable, "-c", script, str(first.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in (first.path, *first.path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.stderr == ""
    assert "text_encoder 2/2, unet 4/4" in done.stdout
    assert done.stdout.endswith("permission denied\n")
    assert tree(first.path) == tree(SAMPLES / "session-1")


def test_the_first_write_brings_it_up_to_date_and_keeps_the_old_file(first: Session) -> None:
    old, kept = (first.path / FILE).read_bytes(), first.path / f"{FILE}.format-1"
    session = first.with_run_begun("unet step 4")
    assert kept.read_bytes() == old
    written = yaml.safe_load((first.path / FILE).read_text())
    assert (written["format"], written["written_by"], written["lineage"]) == (4, f"fastdb {__version__}", LINEAGE)
    assert Session.open(first.path) == session
    assert session.record.runs[:1] == first.record.runs
    session.with_run_ended("finished")
    assert kept.read_bytes() == old
    kept.replace(first.path / FILE)
    assert Session.open(first.path).record == first.record, "put back, it is what it was"


def test_what_was_kept_once_is_not_kept_again(first: Session) -> None:
    kept = first.path / f"{FILE}.format-1"
    kept.write_text("mine")
    first.with_run_begun("unet step 4")
    assert kept.read_text() == "mine"


def test_a_copy_needs_no_old_file_beside_it(first: Session) -> None:
    copy = sharing.duplicate(first.path, "copy", checkpoints=True, root=first.path.parent)
    assert (copy.record.lineage, copy.record.format) == (LINEAGE, 4)
    assert [path.name for path in copy.path.glob("*.format-*")] == []
    light = sharing.duplicate(first.path, "light", root=first.path.parent)
    assert light.record.lineage not in ("", LINEAGE)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("format: 5\n", f"has format 5, and this version ({WRITER}) reads formats 1 to 4. Update fastdb"),
        ("format: 5\nwritten_by: fastdb 0.4.2\n", "has format 5, written by 'fastdb 0.4.2', and this version"),
        ("format: 5\nwritten_by: [1]\n", "has format 5, and this version"),
        ('format: 5\nwritten_by: "\\e[2J\\n"\n', r"written by '\x1b[2J\n', and"),
        ("format: 0\n", "has format '0', which no version of fastdb writes"),
        ("format: true\n", "has format 'True', which no version"),
        ("format: 2.0\n", "has format '2.0', which no version"),
        ("format: [1]\n", "has format '[1]', which no version"),
    ],
)
def test_a_format_that_is_not_known_is_refused_kindly(head: str, said: str, first: Session) -> None:
    (first.path / FILE).write_text(head + "name: cup\n")
    before = tree(first.path)
    with pytest.raises(SessionError) as caught:
        Session.open(first.path)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert tree(first.path) == before


def test_what_has_a_newer_format_is_not_kept_as_an_old_one(first: Session) -> None:
    (first.path / FILE).write_text("format: 4\n")
    write_record(first.path, first.record)
    assert sorted(path.name for path in first.path.glob(f"{FILE}*")) == [FILE]


def test_checkpoints_of_format_1_are_gone_on_from(first: Session) -> None:
    """Their states say neither format nor lineage, and nothing speaks against them."""
    before = tree(first.path)
    there = complete(first.checkpoints)
    assert [(one.stage, one.step) for one in there] == [("text_encoder", 2), ("unet", 4)]
    assert [faults(one.path) for one in there] == [[], []]
    assert not {"format", "lineage"} & set(there[0].state)
    assert newest(first.checkpoints, "unet", LINEAGE) == (there[1], [])
    stands = standing(first)
    assert (stands.skipped, stands.done("text_encoder"), stands.done("unet")) == ((), 2, 4)
    assert sessions.show(first).session.record == first.record
    assert tree(first.path) == before


def test_their_recipe_is_that_of_the_session(first: Session) -> None:
    pytest.importorskip("numpy")
    from fastdb.errors import TrainingError
    from fastdb.training.preflight import check_recipes, instances, make_recipe

    there = complete(first.checkpoints)
    check_recipes(there, make_recipe(first, instances(first), None), "cup")
    other = first.with_config(first.config.changed({"unet.learning_rate": 1e-5}))
    with pytest.raises(TrainingError, match=r"of the unet stage: unet.learning_rate 0.0006 -> 1e-05"):
        check_recipes(there, make_recipe(other, instances(other), None), "cup")


def test_their_tensors_go_back_into_an_optimizer(first: Session) -> None:
    torch = pytest.importorskip("torch")
    from accelerate import Accelerator
    from safetensors.torch import load_file

    from fastdb.checkpoints.progress import Standing
    from fastdb.training.optimizers import make_optimizer
    from fastdb.training.saver import OPTIMIZER, restore
    from fastdb.training.stages import Stage

    checkpoint = standing(first).checkpoints["unet"]
    module = torch.nn.Linear(3, 2)
    module.load_state_dict(load_file(Standing({"unet": checkpoint}, ()).training_weights["unet"]))
    stage = Stage("unet", {"unet": first.config.unet}, {"unet": module}, None, None)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True)
    kind = checkpoint.state["host"]["optimizer"]
    made = make_optimizer(kind, [module.parameters()], first.config.optimizer)
    optimizer = stage.prepare(accelerator, made)
    restore(checkpoint, stage, optimizer, accelerator, Path(), kind)
    moments = load_file(checkpoint.path / OPTIMIZER)
    state = optimizer.state_dict()["state"]
    assert {f"{number}/{name}" for number in state for name in state[number]} == set(moments)
    assert all(
        torch.equal(state[number][name], moments[f"{number}/{name}"]) for number in state for name in state[number]
    )
    assert stage.average is not None
    kept = load_file(Standing({"unet": checkpoint}, ()).weights["unet"])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in stage.average.state_dict().items())


def test_an_evaluation_of_format_1_keeps_its_choice_and_is_not_compared_with() -> None:
    """Its pictures had other seeds."""
    pytest.importorskip("torch")
    from fastdb.evaluation.candidates import Candidate
    from fastdb.evaluation.choose import Pick
    from fastdb.evaluation.prompts import Group, Protocol
    from fastdb.evaluation.report import Evaluation, compare_export
    from fastdb.measures.values import Measured, Value
    from fastdb.reporting import Note

    drawn = {"steps": 2, "guidance": 3.0, "sampler": "DPM++ 2M", "width": 64, "height": 64, "precision": "fp32"}
    asked = Protocol((Group("subject", "the instance prompt: the subject alone", ("a photo of sks mug",)),), 1)
    here = Candidate("cup.safetensors", 4, "", lambda: None)  # type: ignore[arg-type, return-value]
    found = Measured({"subject": Value(0.25), "subject_class": Value(1.0)})
    about = "the drawn world's readings, subject: mug"
    evaluation = Evaluation("cup", drawn, about, (), asked, [here], [found], Pick(0, "", ""))
    note = compare_export(evaluation, SAMPLES / "session-1" / "evaluation" / "evaluation.json")
    assert note == Note("export not comparable", "cup.safetensors")
    assert retention(Session.open(SAMPLES / "session-1")).keeps("unet", 4)


def test_a_packed_file_of_format_1_is_read() -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from fastdb.checkpoints.compressed_file import Base, Packed

    folder = SAMPLES / "packed-1"
    packed, plain = (
        Packed.open(folder / "sample.packed", Base.of(folder / "base.safetensors")),
        load_file(folder / "raw.safetensors"),
    )
    assert set(packed.tensors) == set(plain)
    assert all(torch.equal(packed.numbers(name).tensor(), plain[name]) for name in plain)


def test_a_sample_is_what_it_was() -> None:
    """Whoever changes one by accident, such as by line endings, is told here."""
    assert os.path.getsize(SAMPLES / "session-1" / FILE) == 4276
    assert [faults(one.path) for one in complete(SAMPLES / "session-1" / "checkpoints")] == [[], []]
