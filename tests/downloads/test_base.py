"""Base models from the Hub, recorded in a session and downloaded again on another machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fastdb
from fastdb import interactive
from fastdb.commands import sessions
from fastdb.errors import ConfigError, ModelError, SessionExists, TrainingError
from fastdb.models.diffusers_folder import fingerprint, open_base_model
from fastdb.models.resolve import ensure_base, resolve_base
from fastdb.sessions.session import Session
from tests.downloads.server import COMMIT, LATER, File, Hub, Server
from tests.downloads.test_hub import NAME

SETTINGS = {"resolution": 64}


@pytest.fixture
def offered(hub: Hub, mini: Path) -> dict[str, bytes]:
    """mini as a repository on the Hub."""
    files = {path.relative_to(mini).as_posix(): path.read_bytes() for path in sorted(mini.rglob("*")) if path.is_file()}
    assert len(files) >= 10
    hub.add(NAME, {**files, "unet/diffusion_pytorch_model.bin": b"b" * 2000, "model.ckpt": b"c" * 2000})
    return hub.repositories[NAME]


@pytest.fixture
def session(offered: dict[str, bytes]) -> Session:
    return sessions.new("dog", NAME, settings=SETTINGS)


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, without the cache of this machine."""
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "other-cache"))


def test_a_new_session_records_the_commit_and_the_folder(session: Session, mini: Path, tmp_path: Path) -> None:
    record = yaml.safe_load((session.path / "session.yaml").read_text("utf-8"))["base_model"]
    assert record["source"] == f"{NAME}@{COMMIT}"
    assert record["fingerprint"] == fingerprint(mini)
    folder = ensure_base(session).folder
    assert (str(folder), folder.is_relative_to(tmp_path / "cache")) == (record["folder"], True)
    assert open_base_model(folder).cross_attention_dim == open_base_model(mini).cross_attention_dim
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.ckpt"))


def test_a_look_at_the_hub_is_announced_and_one_at_this_machine_is_not(
    session: Session, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastdb.new("cat", NAME, settings=SETTINGS)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"Looking for {NAME} in the model cache and on its server"
    for name, base in {"cow": "mini", "pig": str(mini)}.items():
        fastdb.new(name, base, settings=SETTINGS)
        assert "Looking for" not in capsys.readouterr().out


def test_another_machine_downloads_the_same_commit(
    session: Session, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, monkeypatch)
    hub.commit = LATER
    before = (session.path / "session.yaml").read_bytes()
    folder = ensure_base(session).folder
    assert folder.is_relative_to(tmp_path / "other-cache")
    assert fingerprint(folder) == session.record.base_model.fingerprint
    hub.log.clear()
    assert ensure_base(session).folder == folder
    assert hub.log == [], "once"
    assert (session.path / "session.yaml").read_bytes() == before


def test_weights_downloaded_again_must_be_the_same(
    session: Session, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    ensure_base(session)
    elsewhere(tmp_path, monkeypatch)
    weights = next(name for name in hub.repositories[NAME] if name.startswith("vae/") and name.endswith(".safetensors"))
    data = hub.repositories[NAME][weights]
    hub.repositories[NAME][weights] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(TrainingError, match="this base model has other weights than the session began with"):
        ensure_base(session)


def test_a_path_written_into_the_session_takes_precedence(session: Session, hub: Hub, tmp_path: Path) -> None:
    own = shutil.copytree(ensure_base(session).folder, tmp_path / "own")
    path = session.path / "session.yaml"
    path.write_text(path.read_text("utf-8").replace(session.record.base_model.folder, str(own)), "utf-8")
    shutil.rmtree(tmp_path / "cache")
    hub.log.clear()
    assert ensure_base(Session.open("dog")).folder == own
    assert hub.log == []


def test_a_failed_download_names_the_source(
    session: Session, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, monkeypatch)
    hub.repositories.clear()
    with pytest.raises(
        ModelError, match=f"^{NAME}@{COMMIT}: there is no such local folder, and no such repository on the Hub"
    ):
        ensure_base(session)


def test_an_old_session_has_no_source(session: Session, tmp_path: Path) -> None:
    path = session.path / "session.yaml"
    data = yaml.safe_load(path.read_text("utf-8"))
    data["format"] = 1
    del data["base_model"]["source"], data["lineage"]
    path.write_text(yaml.safe_dump(data), "utf-8")
    old = Session.open("dog")
    assert old.record.base_model.source == ""
    assert ensure_base(old).folder == ensure_base(session).folder
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ModelError, match=r"there is no such file or folder\. Put the base model of dog back there"):
        ensure_base(old)


def test_a_local_folder_is_recorded_without_a_source(mini: Path, tmp_path: Path) -> None:
    own = shutil.copytree(mini, tmp_path / "own")
    assert sessions.new("cat", own, settings=SETTINGS).record.base_model.source == ""
    assert sessions.new("cow", "mini").record.base_model.source == ""


def test_nothing_is_downloaded_for_an_existing_session_name(session: Session, hub: Hub) -> None:
    hub.log.clear()
    with pytest.raises(SessionExists):
        sessions.new("dog", "owner/other", settings=SETTINGS)
    assert hub.log == []


def test_a_downloaded_file_that_is_not_a_model_is_refused(
    offered: dict[str, bytes], server: Server, tmp_path: Path, sessions_folder: Path
) -> None:
    server.files["/model.ckpt"] = File(b"c" * 2000)
    (tmp_path / "own.ckpt").write_bytes(b"c" * 2000)
    for base in (f"{NAME}/model.ckpt", f"{server.url}/model.ckpt", "own.ckpt"):
        with pytest.raises(ModelError) as caught:
            sessions.new("dog", base, settings=SETTINGS)
        message = str(caught.value)
        assert "unknown file format, which begins with b'cccccccc" in message
        assert Path(message.split(": the model file is invalid")[0]).read_bytes() == b"c" * 2000
    assert not sessions_folder.exists()


def test_another_pipeline_is_refused_before_its_weights(offered: dict[str, bytes], hub: Hub, other: Server) -> None:
    index = {**json.loads(offered["model_index.json"]), "_class_name": "StableDiffusionXLPipeline"}
    offered["model_index.json"] = json.dumps(index).encode()
    with pytest.raises(ModelError, match="contains a StableDiffusionXLPipeline, not a StableDiffusionPipeline"):
        resolve_base(NAME)
    assert other.log == []


def test_the_command_line_prints_one_line_without_the_token(
    offered: dict[str, bytes], hub: Hub, sessions_folder: Path
) -> None:
    def fastdb(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_TOKEN": "hf_s3cr3t", "COLUMNS": "200"}
        command = [sys.executable, "-m", "fastdb", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    done = fastdb("new", "dog", "--base", "owner/none", "--set", "resolution=64")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: owner/none: there is no such local folder, and no such repository on the Hub")
    hub.gated[NAME] = "hf_s3cr3t"
    good = fastdb("new", "dog", "--base", NAME, "--set", "resolution=64")
    assert good.returncode == 0, good.stderr
    assert "base model: 100%" in good.stderr
    assert "B/s" in good.stderr
    assert "s3cr3t" not in done.stdout + done.stderr + good.stdout + good.stderr
    files = [path for path in sessions_folder.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert [path for path in files if b"s3cr3t" in path.read_bytes()] == []


def test_a_name_of_the_registry_tries_its_repositories_in_order(
    hub: Hub, mini: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The well-known repository is gone, so its name leads to the replacement."""
    files = {path.relative_to(mini).as_posix(): path.read_bytes() for path in sorted(mini.rglob("*")) if path.is_file()}
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", files)
    for number, name in enumerate(("sd15", "runwayml/stable-diffusion-v1-5", "Stable Diffusion 1.5")):
        session = interactive.new(f"dog{number}", name, settings={"resolution": 512})
        assert session.record.base_model.source == f"stable-diffusion-v1-5/stable-diffusion-v1-5@{COMMIT}"


def test_a_model_that_cannot_be_trained_or_was_made_for_another_size_is_refused_before_anything_is_fetched(
    hub: Hub, sessions_folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"SDXL cannot be trained yet: .* Choose a model that can: sd15"):
        sessions.new("dog", "sdxl")
    with pytest.raises(
        ConfigError, match=r"resolution: Stable Diffusion 1\.5 was made for 512 px and takes .*, not 768"
    ):
        sessions.new("dog", "sd15", settings={"resolution": 768})
    assert not sessions_folder.exists()
    assert hub.log == []
