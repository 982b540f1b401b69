"""Photos, a home for sessions, and a Google Colab that is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from fastdb.runtime import drive, paths


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three real photos."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("cat", "astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which sessions and this machine's cache lie, for kernels and for the test itself."""
    monkeypatch.setenv("FASTDB_ROOT", str(tmp_path / "drive"))
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    return tmp_path


class FakeColab:
    """`google.colab` as far as it is used, with the signatures and the errors of the real one (2026-04)."""

    def __init__(self, machine: Path) -> None:
        self.mountpoint = machine / "content" / "drive"
        self.mountpoint.parent.mkdir()
        self.fails_with: Exception | None = None
        self.appears = True
        self.asked: list[str] = []
        self.chosen: dict[str, bytes] = {}
        self.module = ModuleType("google.colab")
        self.module.errors = ModuleType("google.colab.errors")
        self.module.errors.MessageError = type("MessageError", (Exception,), {})
        self.module.drive = self._part("drive", mount=self.mount, flush_and_unmount=self.flush_and_unmount)
        self.module.files = self._part("files", upload=self.upload, download=self.download)
        self.module.runtime = self._part("runtime", unassign=self.unassign)

    def _part(self, name: str, **members: object) -> ModuleType:
        part = ModuleType(f"google.colab.{name}")
        vars(part).update(members)
        return part

    def mount(
        self, mountpoint: str, force_remount: bool = False, timeout_ms: int = 120000, readonly: bool = False
    ) -> None:
        self.asked.append(f"consent for {mountpoint}")
        if not isinstance(mountpoint, str) or " " in mountpoint:
            raise ValueError("Mountpoint must not contain a space.")
        self._fail()
        if self.appears:
            (Path(mountpoint) / "MyDrive").mkdir(parents=True)

    def flush_and_unmount(self, timeout_ms: int = 24 * 60 * 60 * 1000) -> None:
        self.asked.append("flush")
        self._fail()

    def upload(self, target_dir: str = "") -> dict[str, bytes]:
        """Save what was chosen into the current folder, beside what is there already."""
        self.asked.append("upload")
        saved = {}
        for name, data in self.chosen.items():
            path = Path(target_dir, name)
            if path.exists():
                path = path.with_name(f"{path.stem} (1){path.suffix}")
            path.write_bytes(data)
            saved[str(path)] = data
        return saved

    def download(self, filename: str) -> None:
        if not Path(filename).exists():
            raise FileNotFoundError(f"Cannot find file: {filename}")
        self.asked.append(f"download {Path(filename).name}")

    def unassign(self) -> None:
        self.asked.append("unassign")

    def refuse(self) -> None:
        """The next request ends as it does when the person refuses."""
        self.fails_with = self.module.errors.MessageError("Error: credential propagation was unsuccessful")

    def _fail(self) -> None:
        if self.fails_with is not None:
            raise self.fails_with


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeColab:
    """This test runs on Google Colab."""
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "hostname").write_text("colab")
    fake = FakeColab(machine)
    monkeypatch.setattr(drive, "COLAB", machine / "hostname")
    monkeypatch.setattr(paths, "DRIVES", (fake.mountpoint / "MyDrive", machine / "content" / "gdrive" / "MyDrive"))
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", fake.module)
    for name in ("errors", "drive", "files", "runtime"):
        monkeypatch.setitem(sys.modules, f"google.colab.{name}", getattr(fake.module, name))
    for name in (*drive.ELSEWHERE, "FASTDB_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return fake
