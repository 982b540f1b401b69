"""Folders of its own for every test, the model that ships, real photos, and the ways a machine can fail."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastdb import console, errors
from tests import fork_server
from tests.requires import missing_for_fuse

# Before any test file imports it by name. It starts real processes until it has a server.
subprocess.Popen = fork_server.ForkedPopen  # type: ignore[misc]
# Before any test file loads torch: one thread each, so that the workers do not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples every time: no commit is to fail for what another one did. `make test-full` looks for new ones.
    settings.register_profile("same", derandomize=True)
    settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--real-processes`."""
    parser.addoption("--real-processes", action="store_true", help="fork no process from the fork server")


def pytest_collection_finish() -> None:
    """Keep the results of the imports out of later garbage collections, of which trainers ask for several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_words() -> Iterator[None]:
    """Messages of later tests are in the command line's words again; cells use those of notebooks."""
    yield
    console.reword(str)
    errors.reword(str)


@pytest.fixture(scope="session", autouse=True)
def _forked_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes of `python -m fastdb` are forked from one which has the imports behind it."""
    if request.config.getoption("--real-processes") or not fork_server.usable():
        yield
        return
    with tempfile.TemporaryDirectory() as folder, fork_server.forked_processes(Path(folder)):
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that this test starts are real ones, with all their imports."""
    monkeypatch.setattr(fork_server.ForkedPopen, "server", None)


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _cache(common: Path) -> Iterator[Path]:
    """What can be made again goes to a folder of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDB_CACHE", str(common / "cache"))
        yield common / "cache"


@pytest.fixture(autouse=True)
def sessions_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds this test's sessions."""
    monkeypatch.setenv("FASTDB_ROOT", str(tmp_path / "sessions"))
    return tmp_path / "sessions"


@pytest.fixture(scope="session")
def mini() -> Path:
    """The folder of the base model that ships, which tests only read."""
    from fastdb.models.registry import MINI
    from fastdb.models.resolve import resolve_base

    return resolve_base(MINI).folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real photos that scikit-image ships: cat.png, astronaut.png and cup.png."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    pictures = {"cat": data.cat(), "astronaut": data.astronaut(), "cup": data.coffee()}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pictures]


@pytest.fixture
def shared() -> Path:
    """The folder beside the repository that holds larger data."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def fuse() -> None:
    """Skips tests that mount a drive where that is impossible."""
    if reason := missing_for_fuse():
        pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts real disks that really fill up: `small_disk("1m")` gives the folder."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command here")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk may not be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


GIVE_UP = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of linux/capability.h
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def forbidden(tmp_path: Path) -> list[str]:
    """What to put before a command so that permissions count for it, for root too: it gives up passing over them."""
    if sys.platform != "linux":
        pytest.skip("only Linux lets a process give up capabilities")
    before = [sys.executable, "-c", GIVE_UP]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    attempt = [*before, sys.executable, "-c", f"open({str(closed / 'x')!r}, 'w')"]
    if subprocess.run(attempt, capture_output=True, check=False).returncode == 0:
        pytest.skip("this user passes over permissions and cannot give that up")
    return before


CUT = """
import os, signal, sys
from pathlib import Path

{body}

EVENTS = {{"open", "os.mkdir", "os.rename", "os.truncate", "os.remove", "os.rmdir", "cut"}}
root = Path(sys.argv[1])
for point in range(1, 500):
    folder = root / f"{{point:03d}}"
    folder.mkdir(parents=True)
    prepare(folder)
    child = os.fork()
    if child == 0:
        left = point
        def hook(event, arguments):
            global left
            left -= event in EVENTS
            if left == 0:
                left = -1  # os.kill is such an event too
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        work(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        sys.exit(0)
    if status != signal.SIGKILL:
        sys.exit("it ended otherwise than by the kill")
sys.exit("it never ended")
"""


@pytest.fixture
def cut_everywhere(tmp_path: Path) -> Callable[[str], list[Path]]:
    """Runs `work(folder)` of a script again and again after `prepare(folder)`, each time in a folder of its own, and
    kills it (SIGKILL) before its first touch of the file system, its second, and so on until it is through.

    `sys.audit("cut")` in the script is one more point. Gives the folders in that order; the last one is whole.
    """

    def cut(body: str) -> list[Path]:
        root = tmp_path / "cut"
        command = [sys.executable, "-c", CUT.format(body=body), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return sorted(root.iterdir())

    return cut
