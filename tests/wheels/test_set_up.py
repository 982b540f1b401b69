"""The set-up cell, run in environments of its own against folders of wheels."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest

from tests.wheels.conftest import REPOSITORY, Environment, make_wheel, pin

NOTEBOOK = REPOSITORY / "notebooks" / "fast-DreamBooth.ipynb"

LIGHT = {
    "fastdb/__init__.py": "def set_up():\n    print('set up', __file__)\n",
    "fastdb/new_module.py": "",
}
"""A stand-in for the package, whose own set-up is tested below."""


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A wheel with our name and few files."""
    return make_wheel(tmp_path / "wheels", "fast-dreambooth", "0.2.0", LIGHT, "fast DreamBooth: a test")


def cell(machine: Path, source: str = "") -> str:
    """Return the set-up cell with a source, on a machine whose `/content` and `/var/colab` are in a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = next(each.source for each in notebook.cells if each.cell_type == "code")
    assert 'source = ""' in code
    return (
        code.replace('source = ""', f"source = {source!r}")
        .replace("/content/", f"{machine}/content/")
        .replace("/var/colab/hostname", f"{machine}/hostname")
    )


def test_a_wheel_on_drive_is_installed(environment: Environment, programs: Path, light: Path, tmp_path: Path) -> None:
    kept = tmp_path / "content" / "drive" / "MyDrive" / "Fast-Dreambooth" / "wheels"
    kept.mkdir(parents=True)
    light.rename(kept / light.name)
    done = environment.run(cell(tmp_path), tmp_path, programs)
    assert done.returncode == 0, done.stderr
    assert f"set up {environment.packages / 'fastdb'}" in done.stdout
    before = environment.times()
    again = environment.run(cell(tmp_path), tmp_path, tmp_path / "no programs")
    assert again.returncode == 0, again.stderr
    assert environment.times() == before


def test_the_newest_wheel_on_drive_is_installed(environment: Environment, tmp_path: Path) -> None:
    kept = tmp_path / "content" / "gdrive" / "MyDrive" / "Fast-Dreambooth" / "wheels"
    for age, version in enumerate(["0.9.0", "0.10.0", "0.8.0"]):
        made = make_wheel(kept, "fast-dreambooth", version, LIGHT, "fast DreamBooth")
        os.utime(made, (1e9 + (age == 1), 1e9 + (age == 1)))
    done = environment.run(cell(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (environment.packages / "fast_dreambooth-0.10.0.dist-info").is_dir()


def test_a_source_wins_over_drive(environment: Environment, light: Path, tmp_path: Path) -> None:
    kept = tmp_path / "content" / "drive" / "MyDrive" / "Fast-Dreambooth" / "wheels"
    make_wheel(kept, "fast-dreambooth", "0.9.0", LIGHT, "fast DreamBooth")
    done = environment.run(cell(tmp_path, str(light)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (environment.packages / "fast_dreambooth-0.2.0.dist-info").is_dir()


def test_a_clone_beside_the_notebook_is_not_an_installation(
    environment: Environment, programs: Path, light: Path, tmp_path: Path
) -> None:
    """A folder named fastdb is a namespace package to `find_spec`; as a source it is a path, not a name on an index."""
    (tmp_path / "content" / "fastdb" / "fastdb").mkdir(parents=True)
    (tmp_path / "content" / "fastdb" / "fastdb" / "__init__.py").write_text("raise ImportError('the clone')")
    done = environment.run(cell(tmp_path), tmp_path / "content", programs)
    assert done.returncode == 1
    assert done.stderr.strip() == "fastdb is missing: fill in source"
    done = environment.run(cell(tmp_path, "fastdb"), tmp_path / "content", programs)
    assert done.returncode == 1
    assert str(tmp_path / "content" / "fastdb") in done.stderr, "the reason is the installer's own"
    done = environment.run(cell(tmp_path, str(light)), tmp_path / "content", programs)
    assert done.returncode == 0, done.stderr
    assert f"set up {environment.packages / 'fastdb'}" in done.stdout


def test_an_older_build_of_ours_is_uninstalled(
    environment: Environment, programs: Path, light: Path, tmp_path: Path
) -> None:
    files = {"fastdb/__init__.py": "", "fastdb/old_module.py": ""}
    environment.pip("install", make_wheel(tmp_path / "old", "fastdb", "0.1.0", files, "fast DreamBooth: teach"))
    done = environment.run(cell(tmp_path, str(light)), tmp_path, programs)
    assert done.returncode == 0, done.stderr
    assert not (environment.packages / "fastdb-0.1.0.dist-info").exists()
    modules = {path.name for path in (environment.packages / "fastdb").glob("*.py")}
    assert modules == {"__init__.py", "new_module.py"}


def test_the_strangers_package_is_named_and_left(environment: Environment, light: Path, tmp_path: Path) -> None:
    stranger = make_wheel(tmp_path / "stranger", "fastdb", "1.0.1", {"fastdb/__init__.py": ""}, "A database")
    environment.pip("install", stranger)
    before = environment.times()
    done = environment.run(cell(tmp_path, str(light)), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Another project named fastdb is installed. Uninstall it")
    assert environment.times() == before


def test_the_reason_of_a_failure_is_the_installers(environment: Environment, programs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "fast_dreambooth-0.2.0-py3-none-any.whl"
    broken.write_bytes(b"cut off")
    done = environment.run(cell(tmp_path, str(broken)), tmp_path, programs)
    assert done.returncode == 1
    assert "zip" in done.stderr or "is invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_constraints_of_the_host_that_point_nowhere_do_not_matter(
    environment: Environment, programs: Path, light: Path, tmp_path: Path
) -> None:
    nowhere = dict.fromkeys(("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "PIP_CONSTRAINT"), "/nowhere/constraints.txt")
    done = environment.run(cell(tmp_path, str(light)), tmp_path, programs, **nowhere)
    assert done.returncode == 0, done.stderr


COLAB = "import sys, types\nfor name in ('google', 'google.colab'):\n    sys.modules[name] = types.ModuleType(name)\n"


@pytest.mark.parametrize("consent", [True, False])
def test_drive_is_mounted_first(environment: Environment, light: Path, tmp_path: Path, consent: bool) -> None:
    """Without consent the wheel is not at hand, and the message names the way on."""
    (tmp_path / "hostname").touch()
    home = tmp_path / "content" / "drive"
    code = f"""{COLAB}
import os, shutil
def mount(path):
    assert path == {str(home)!r}
    if not {consent}:
        raise Exception("credential propagation was unsuccessful")
    os.makedirs(path + "/MyDrive/Fast-Dreambooth/wheels")
    shutil.copy({str(light)!r}, path + "/MyDrive/Fast-Dreambooth/wheels")
drive = sys.modules["google.colab.drive"] = types.ModuleType("drive")
drive.mount = mount
{cell(tmp_path)}"""
    done = environment.run(code, tmp_path)
    if consent:
        assert done.returncode == 0, done.stderr
        assert (environment.packages / "fast_dreambooth-0.2.0.dist-info").is_dir()
        (light).unlink()
        assert environment.run(code, tmp_path).returncode == 0, "it is mounted already"
    else:
        assert done.stderr.strip() == "fastdb is missing: fill in source"


MISSING = """
import json
from fastdb.console import ConsoleReport
from fastdb.runtime import drive, paths, wheels
from pathlib import Path
machine = Path({machine!r})
paths.DRIVES = (machine / "content" / "drive" / "MyDrive",)
wheels.LOCKS = machine / "locks"
wheels.has_nvidia_gpu = lambda: True
drive.COLAB = machine
from fastdb.errors import SetupError
try:
    print(json.dumps(wheels.install_missing(ConsoleReport())))
except SetupError as error:
    raise SystemExit(f"error: {{error}}")
"""


class Host:
    """An environment with our real wheel and a torch, and an index that has what the lock wants."""

    def __init__(self, environment: Environment, machine: Path, programs: Path) -> None:
        self.environment, self.machine, self.programs = environment, machine, programs
        self.index = machine / "index"
        self.wanted = make_wheel(self.index, "bitsandbytes", "0.50.2", {"bitsandbytes.py": "VERSION = 2\n"})
        self.locks = machine / "locks"
        self.locks.mkdir()
        self.lock = self.locks / f"colab-gpu-{sys.version_info.major}.{sys.version_info.minor}.txt"
        self.lock.write_text(f"# a comment\n{pin(self.wanted)}")
        self.drive = machine / "content" / "drive" / "MyDrive"
        self.kept = self.drive / "Fast-Dreambooth" / "wheels"

    def set_up(self) -> tuple[int, list[str], str]:
        """Install what is missing; return the exit code, the names and everything printed."""
        index = str(self.index)
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": index, "UV_OFFLINE": "1", "UV_FIND_LINKS": index}
        done = self.environment.run(MISSING.format(machine=str(self.machine)), self.machine, self.programs, **offline)
        names = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
        return done.returncode, names, done.stdout + done.stderr

    def remove(self) -> None:
        """Take the machine back to how it was before set-up."""
        self.environment.pip("uninstall", "-y", "bitsandbytes")


@pytest.fixture
def host(with_torch: Environment, tmp_path: Path, programs: Path) -> Host:
    return Host(with_torch.copy(tmp_path / "environment"), tmp_path, programs)


def test_what_the_host_lacks_is_installed_and_nothing_else_is_touched(host: Host) -> None:
    before = host.environment.times()
    assert host.set_up()[:2] == (0, ["bitsandbytes"])
    after = host.environment.times()
    assert {name: after.get(name) for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {
        "bitsandbytes.py",
        "bitsandbytes-0.50.2.dist-info",
    }
    assert host.set_up()[:2] == (0, [])
    assert host.environment.times() == after


def test_wheels_are_kept_on_drive_and_need_no_index_the_next_time(host: Host) -> None:
    host.drive.mkdir(parents=True)
    assert host.set_up()[:2] == (0, ["bitsandbytes"])
    assert [path.name for path in host.kept.iterdir()] == [host.wanted.name]
    host.remove()
    host.wanted.unlink()
    assert host.set_up()[:2] == (0, ["bitsandbytes"])


def test_a_damaged_wheel_on_drive_is_downloaded_again(host: Host) -> None:
    host.kept.mkdir(parents=True)
    (host.kept / host.wanted.name).write_bytes(host.wanted.read_bytes()[:-9])
    code, names, said = host.set_up()
    assert (code, names) == (0, ["bitsandbytes"]), said
    assert f"Could not install from {host.kept}" in said
    assert (host.kept / host.wanted.name).read_bytes() == host.wanted.read_bytes()


def test_another_file_than_the_locked_one_is_refused(host: Host) -> None:
    make_wheel(host.index, "bitsandbytes", "0.50.2", {"bitsandbytes.py": "import os\n"})
    code, _, said = host.set_up()
    assert code == 1
    assert "hash" in said.lower()
    assert "run set-up again" in said
    assert not (host.environment.packages / "bitsandbytes.py").exists()


def test_another_version_of_the_host_is_left(host: Host) -> None:
    older = make_wheel(host.machine / "host", "bitsandbytes", "0.48.0", {"bitsandbytes.py": "VERSION = 1\n"})
    host.environment.pip("install", older)
    before = host.environment.times()
    assert host.set_up()[:2] == (0, [])
    assert host.environment.times() == before


def test_no_second_opencv_is_added(host: Host) -> None:
    opencv = make_wheel(host.index, "opencv-python-headless", "4.12.0", {"cv2.py": "VERSION = 2\n"})
    host.lock.write_text(pin(opencv))
    host.environment.pip("install", make_wheel(host.machine / "host", "opencv-python", "5.0.0", {"cv2.py": ""}))
    assert host.set_up()[:2] == (0, [])
    host.environment.pip("uninstall", "-y", "opencv-python")
    assert host.set_up()[:2] == (0, ["opencv_python_headless"])


def test_without_torch_the_message_says_to_install_it_first(host: Host) -> None:
    host.environment.pip("uninstall", "-y", "torch")
    code, _, said = host.set_up()
    assert code == 1
    assert (
        "error: torch is not installed, and its build depends on the machine. Install torch 2.10 or newer with CUDA"
        in said
    )


def test_a_host_without_a_lock_names_what_is_missing(host: Host) -> None:
    host.lock.unlink()
    code, _, said = host.set_up()
    assert code == 1
    assert "not locked for Python" in said
    assert "Install them with pip install accelerate diffusers" in said
