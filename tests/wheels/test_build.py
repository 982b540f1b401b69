"""The build of the wheel, its locks and the comparison with Colab's versions."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheels.conftest import REPOSITORY

WHEELS = REPOSITORY / "wheels"
LISTS = REPOSITORY.parent / "shared" / "data" / "colab"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of the package."""
    pytest.importorskip("setuptools", minversion="70.1")
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "checkout"
    aside = shutil.ignore_patterns(".*", "dist", "*.egg-info", "__pycache__", "tests", "docs", "benchmarks")
    shutil.copytree(REPOSITORY, folder, ignore=aside)
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "All"], check=True)
    return folder


def build(checkout: Path, target: Path, *options: str, umask: int = 0o022) -> tuple[Path, str]:
    """Build a wheel; return it with what was written to standard error."""
    command = [sys.executable, str(checkout / "wheels" / "build"), str(target), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", umask=umask)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl")), done.stderr


def test_two_builds_of_a_commit_are_equal(checkout: Path, tmp_path: Path) -> None:
    """The second is built later, with another umask, beside changed and untracked files."""
    first, said = build(checkout, tmp_path / "first", "--offline")
    assert said.count("offline") == 2, "the model files that the wheel lacks are listed"
    (checkout / "fastdb" / "untracked.py").write_text("")
    (checkout / "README.md").write_text("changed")
    os.utime(checkout / "setup.py")
    second, said = build(checkout, tmp_path / "second", "--offline", umask=0o077)
    assert "uncommitted changes are not in the wheel" in said
    assert first.read_bytes() == second.read_bytes()
    digest, name = (tmp_path / "first" / f"{first.name}.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(first.read_bytes()).hexdigest(), first.name)


def test_the_wheel_gets_the_small_models_that_are_at_hand(checkout: Path, tmp_path: Path) -> None:
    model = b"a model"
    lock = checkout / "wheels" / "models.lock"
    line = f"right.onnx  7  {hashlib.sha256(model).hexdigest()}  MIT  http://127.0.0.1:9/right.onnx\n"
    lock.write_text(f"# small\n{line}{line.replace('right', 'absent')}")
    git = ["git", "-C", str(checkout), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run([*git, "commit", "-qam", "Other models"], check=True)
    models = tmp_path / "models"
    models.mkdir()
    (models / "right.onnx").write_bytes(model)
    wheel, said = build(checkout, tmp_path / "out", "--models", str(models))
    assert re.fullmatch(r"without absent\.onnx: .+\n", said)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/wheels/models/" in name]
        assert names == ["fastdb/wheels/models/right.onnx"]
        assert archive.read(names[0]) == model
    (models / "right.onnx").write_bytes(b"another")
    command = [sys.executable, str(checkout / "wheels" / "build"), str(tmp_path / "no"), "--models", str(models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "right.onnx does not match the checksum in models.lock\n"


@pytest.mark.parametrize("lock", sorted((WHEELS / "locks").iterdir()), ids=lambda path: path.stem)
def test_every_locked_package_has_a_hash_and_none_is_torch(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = [re.fullmatch(r"([a-z0-9._-]+)==\S+(\s+--hash=sha256:[0-9a-f]{64})+", line)[1] for line in lines]  # type: ignore[index]
    assert not {"torch", "torchvision", "torchaudio", "triton"} & set(names)
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]
    assert ("bitsandbytes" in names) == (not lock.name.startswith("cpu"))
    if lock.name.startswith("colab"):
        assert names == ["bitsandbytes"]
    else:
        assert {"diffusers", "transformers", "opencv-python-headless"} <= set(names)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WHEELS / "check"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Colab's lists, as they were when the locks were made."""
    pytest.importorskip("packaging")
    if not LISTS.is_dir():
        pytest.skip("needs ../shared/data/colab beside the repository")
    for file in LISTS.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_an_unchanged_colab_is_reported_as_such(lists: Path) -> None:
    done = check(lists)
    assert (done.returncode, done.stdout) == (0, "28 compared, 0 changed, 0 outside the tested ranges\n")


def test_changed_versions_are_named(lists: Path) -> None:
    freeze = lists / "pip-freeze.gpu.txt"
    text = freeze.read_text(encoding="utf-8")
    freeze.write_text(text.replace("transformers==5.15.0", "transformers==5.24.0") + "bitsandbytes==0.50.2\n")
    done = check(lists)
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        "bitsandbytes: not on Colab -> 0.50.2",
        "transformers: 5.15.0 -> 5.24.0",
    ]


def test_versions_outside_the_tested_range_are_named(lists: Path) -> None:
    freeze, system = lists / "pip-freeze.gpu.txt", lists / "os-info-gpu.txt"
    text = freeze.read_text(encoding="utf-8")
    freeze.write_text(text.replace("huggingface_hub==1.27.0", "huggingface_hub==2.4.0"))
    system.write_text(system.read_text(encoding="utf-8").replace("Python 3.13.15", "Python 3.14.2"))
    done = check(lists)
    assert done.returncode == 2
    assert "huggingface-hub 2.4.0 is outside the tested range" in done.stdout
    assert "Python 3.14 has no locks; they exist for 3.11, 3.12, 3.13" in done.stdout
