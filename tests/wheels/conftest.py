"""A small wheel of this package, a local package index, and virtual environments."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str], summary: str = "") -> Path:
    """Write a wheel with a few text files into a folder."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
    content = {
        **files,
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{stem}.dist-info/RECORD", "".join(rows) + f"{stem}.dist-info/RECORD,,\n")
    return wheel


def pin(wheel: Path) -> str:
    """Return the line of a lock for a wheel."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


class Environment:
    """A virtual environment with pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.packages = next((folder / "lib").glob("python3*")) / "site-packages"

    def pip(self, *arguments: str | Path) -> None:
        """Run pip, offline."""
        command = [self.python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        subprocess.run(command, check=True, env=CLEAN)

    def run(
        self, code: str, cwd: Path, path: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run code as a kernel in `cwd` does, whose current folder is on sys.path."""
        command = [self.python, "-c", code]
        # PATH decides whether uv is found.
        changed = CLEAN | {"PATH": str(path or self.folder / "bin"), "HOME": str(cwd)} | environment
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=changed)

    def times(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every file of the installed packages."""
        return {
            path.relative_to(self.packages).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.packages.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def copy(self, folder: Path) -> Environment:
        """Return a copy in another folder, whose programs but `python` are still those of this one."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Environment(folder)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment without packages but pip, made once."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder, with_pip=True)
    return Environment(folder)


@pytest.fixture
def environment(bare: Environment, tmp_path: Path) -> Environment:
    """A virtual environment without packages but pip."""
    return bare.copy(tmp_path / "environment")


@pytest.fixture(scope="session")
def with_torch(bare: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the real wheel and something called torch, made once."""
    folder = tmp_path_factory.mktemp("with_torch")
    made = bare.copy(folder / "environment")
    torch = make_wheel(folder, "torch", "2.11.0", {"torch.py": ""})
    made.pip("install", "--no-deps", "--no-compile", wheel, torch)
    return made


@pytest.fixture(params=["pip", "uv"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A PATH with uv or without; the test is skipped where uv is not installed."""
    folder = tmp_path / "programs"
    folder.mkdir()
    if request.param == "uv":
        uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        if uv is None:
            pytest.skip("needs uv")
        (folder / "uv").symlink_to(uv)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the package as `setup.py` describes it."""
    pytest.importorskip("setuptools", minversion="70.1")
    source = tmp_path_factory.mktemp("source") / "fastdb"
    aside = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs", "benchmarks")
    shutil.copytree(REPOSITORY, source, ignore=aside)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(target), str(source)], check=True, capture_output=True)
    return next(target.glob("*.whl"))
