"""A session's base model is compared with the one that it began with, in every verb that opens it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fastdb import console
from fastdb.commands import results, sessions, sharing, space, training
from fastdb.errors import TrainingError
from fastdb.models.base_identity import CONFIGURATIONS, check_identity, configurations
from fastdb.models.convert import convert
from fastdb.models.diffusers_configs import configs
from fastdb.models.diffusers_folder import fingerprint
from fastdb.models.family import SD1
from fastdb.models.resolve import ensure_base, ensure_folder
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import read_record, write_record

SETTINGS = {
    "token.try": "off",
    "stop.check_loss": False,
    "prior.class_images": 0,
    "text_encoder.steps": 0,
    "unet.steps": 1,
}


@pytest.fixture
def base(mini: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mini, tmp_path / "model"))


@pytest.fixture
def session(base: Path, photos: list[Path]) -> Session:
    return sessions.new("mug", base, photos[:1], token="sks", class_word="mug", settings=SETTINGS)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=3))


def test_every_file_that_decides_the_behaviour_counts(base: Path) -> None:
    before = configurations(base)
    assert set(before) >= {"unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"}
    for name in CONFIGURATIONS:
        file = base / name
        old = file.read_bytes() if file.exists() else None
        if name.endswith(".json"):
            file.write_text(json.dumps({**json.loads(old or b"{}"), "changed": 1}))
        else:
            file.write_bytes((old or b"") + b"x y\n")
        assert [each for each in CONFIGURATIONS if configurations(base).get(each) != before.get(each)] == [name]
        file.write_bytes(old) if old is not None else file.unlink()
    assert configurations(base) == before


def test_spaces_origin_and_empty_values_do_not_count(base: Path) -> None:
    before = configurations(base)
    edit(base / "unet" / "config.json", _diffusers_version="99", _name_or_path="elsewhere", something=None)
    edit(base / "text_encoder" / "config.json", transformers_version="99", torch_dtype="float16")
    edit(base / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    assert configurations(base) == before


def another_scheduler(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")


def other_weights(base: Path) -> None:
    """Of the same size and time of modification, as an archive would restore them."""
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    facts, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


VERBS: dict[str, Callable[[Session], object]] = {
    "train": training.train,
    "export": results.export,
    "generate": lambda session: results.generate(session, "a mug", steps=1),
    "evaluate": lambda session: results.evaluate(session, file=session.path / "mug.safetensors"),
    "duplicate": lambda session: sharing.duplicate(session, "copy"),
    "check": sessions.check,
}


@pytest.mark.parametrize("replaced", [another_scheduler, other_weights])
def test_every_verb_refuses_another_base_model(
    base: Path, session: Session, replaced: Callable[[Path], None], tmp_path: Path
) -> None:
    (session.path / "mug.safetensors").touch()
    kept = shutil.copytree(base, tmp_path / "kept", copy_function=shutil.copy2)
    replaced(base)
    what = "another scheduler/scheduler_config.json" if replaced is another_scheduler else "other weights"
    for name, verb in VERBS.items():
        with pytest.raises(TrainingError, match=f"this base model has {what} than the session began with") as refused:
            verb(session)
        assert f"fastdb new NAME --base {base}" in refused.value.fix, name
    assert {path.name for path in session.path.parent.iterdir()} == {"mug"}
    # The remedies: restored, or a session of its own.
    assert sessions.new("other", base, settings=SETTINGS).record.base_model != session.record.base_model
    shutil.rmtree(base)
    shutil.copytree(kept, base)
    (session.path / "mug.safetensors").unlink()
    assert sessions.check(session) == []
    assert training.train(session) == "finished"


def test_show_and_space_name_the_file_outside(base: Path, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    console.show_overview(sessions.show("mug"))
    console.show_usage(space.space(["mug"]), details=True)
    printed = capsys.readouterr().out
    assert str(base) in printed.partition("needed, outside")[0], "in show"
    assert f"needed, outside: {base}" in printed
    another_scheduler(base)
    assert sessions.show("mug").base_fault == "its scheduler/scheduler_config.json has changed"
    shutil.rmtree(base)
    assert sessions.show("mug").base_fault == "it does not exist"
    console.show_usage(space.space(["mug"]), details=True)


def test_the_first_run_records_the_configurations_of_an_older_session(session: Session) -> None:
    older = session.record.base_model.model_copy(update={"configurations": {}})
    write_record(session.path, session.record.model_copy(update={"base_model": older}))
    assert training.train("mug") == "finished"
    assert read_record(session.path).base_model == session.record.base_model
    another_scheduler(Path(session.record.base_model.folder))
    with pytest.raises(TrainingError, match="another scheduler"):
        results.export("mug")


def test_a_remembered_hash_is_used_only_for_the_same_file(
    base: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdb.models.base_identity._RACY", -1.0)
    read: list[Path] = []
    true = fingerprint.__defaults__[0]  # type: ignore[index]
    monkeypatch.setattr("fastdb.models.base_identity.sha256", lambda path: (read.append(path), true(path))[1])
    ensure_base(session)
    assert len(read) == 3
    ensure_base(session)
    assert len(read) == 3, "nothing is read again"
    check_identity(session.record.base_model, base, remembered=False)
    assert len(read) == 6, "the trainer reads all"
    other_weights(base)
    with pytest.raises(TrainingError):
        ensure_base(session)
    assert len(read) == 7


SD1_CONFIGURATIONS = {
    "unet/config.json": "c27b4fd42026dff8",
    "vae/config.json": "3deec8562e380ba7",
    "text_encoder/config.json": "05d8f0cf46567a76",
    "scheduler/scheduler_config.json": "dd8e13799c61d0a5",
    "tokenizer/tokenizer_config.json": "130402475045ef04",
}
MINI_IN_ONE_FILE = "00c21e233c8101d3a82f408ea7947b8779fc74f7b0c3a69dd8aadc8679370889"


def test_sessions_on_a_model_in_one_file_find_their_base_again_with_this_version(mini: Path, tmp_path: Path) -> None:
    """Configurations and weights of such a folder come from tables of this package; sessions have their hashes.

    If this fails because a table was edited, sessions on single files refuse their base model: keep the old values, or
    migrate the sessions.
    """
    folder = tmp_path / "sd1"
    for name, config in configs(SD1).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    assert configurations(folder) == SD1_CONFIGURATIONS
    file = convert(mini, tmp_path / "mini.safetensors").path
    assert fingerprint(ensure_folder(file)) == MINI_IN_ONE_FILE
