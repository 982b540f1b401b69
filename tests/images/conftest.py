"""Real photos: those beside the repository where there are any, and those scikit-image ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Path of a file beside the repository; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs ../shared/{name} beside the repository")
        return path

    return find


@pytest.fixture(autouse=True)
def lbp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No YuNet model at hand, and a cache of the test's own: the built-in detector is used unless told otherwise."""
    monkeypatch.delenv("FASTDB_YUNET", raising=False)
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def yunet(lbp: None, shared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The YuNet model is at hand and OpenCV can run it."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "FaceDetectorYN"):
        pytest.skip("this OpenCV has no FaceDetectorYN")
    monkeypatch.setenv("FASTDB_YUNET", str(shared("models/yunet_n_640_640.onnx")))


@pytest.fixture
def detector(request: pytest.FixtureRequest) -> str:
    """Runs a test under each detector named by its parameter."""
    request.getfixturevalue({"YuNet": "yunet", "LBP": "lbp"}[request.param])
    return str(request.param)


@pytest.fixture(scope="session")
def gallery() -> Callable[[str], Image.Image]:
    """A photo that scikit-image ships: astronaut, cat, coffee, rocket."""
    data = pytest.importorskip("skimage.data")

    def picture(name: str) -> Image.Image:
        return Image.fromarray(getattr(data, name)())

    return picture


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A session's originals, instance_images and captions, not yet made."""
    session = tmp_path / "session"
    return session / "originals", session / "instance_images", session / "captions"
