"""The examination of a host's packages."""

from __future__ import annotations

import pytest

pytest.importorskip("packaging")

from fastdb.console import sentence
from fastdb.reporting import Note
from fastdb.runtime import doctor
from fastdb.runtime.doctor import Check, Examination, Package, packages_of, problems, traps

COLAB = {
    "transformers": "5.15.0",
    "huggingface_hub": "1.27.0",
    "torch": "2.11.0+cu128",
    "peft": "0.20.0",
    "torchao": "0.10.0",
    "opencv-python": "5.0.0.93",
    "opencv-python-headless": "5.0.0.93",
    "opencv-contrib-python": "4.14.0.94",
}
REQUIRED = ["transformers>=5.3", "huggingface_hub<2,>=1.0", "torch>=2.10"]


def test_versions_in_their_range_fit() -> None:
    packages = packages_of(REQUIRED, COLAB.get)
    assert [package.fits for package in packages] == [True, True, True]
    assert packages[2] == Package("torch", ">=2.10", "2.11.0+cu128", True)
    assert problems(packages) == []


def test_a_version_outside_its_range_and_a_missing_package_are_problems() -> None:
    versions = COLAB | {"huggingface_hub": "2.4.0"}
    del versions["torch"]
    found = problems(packages_of(REQUIRED, versions.get))
    assert found == [
        Note("package untested", "huggingface_hub 2.4.0", "<2,>=1.0"),
        Note("package missing", "torch", ">=2.10"),
    ]
    assert "pip install 'torch>=2.10'" in sentence(found[1])


def test_a_missing_bitsandbytes_costs_memory_on_a_gpu_only() -> None:
    wanted = packages_of(["bitsandbytes>=0.48"], COLAB.get)
    assert problems(wanted) == []
    kinds = [note.kind for note in traps(COLAB.get, gpu=True)]
    assert kinds == ["bitsandbytes missing", "torchao breaks peft", "several OpenCV"]
    assert [note.kind for note in traps(COLAB.get, gpu=False)] == kinds[1:]
    assert traps((COLAB | {"bitsandbytes": "0.50.2"}).get, gpu=True)[0].kind == kinds[1]


@pytest.mark.parametrize(
    ("torchao", "peft", "breaks"),
    [("0.10.0", "0.20.0", True), ("0.15.1", "0.19.0", True), ("0.16.0", "0.20.0", False), ("0.10.0", "0.18.1", False)],
)
def test_an_old_torchao_breaks_peft_since_0_19(torchao: str, peft: str, breaks: bool) -> None:
    versions = {"torchao": torchao, "peft": peft}
    assert [note.kind for note in traps(versions.get, gpu=False)] == ["torchao breaks peft"] * breaks


def test_one_opencv_is_fine() -> None:
    assert traps({"opencv-python-headless": "4.12.0.88"}.get, gpu=False) == []


def test_warnings_alone_leave_a_host_healthy() -> None:
    assert Examination((), (), (), (Note("bitsandbytes missing"),)).healthy
    assert not Examination((), (), (Note("package missing", "torch"),)).healthy
    assert not Examination((), (), (), (), (Check("faces", "", "no"),)).healthy


def test_hosts_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "VERTEX_PRODUCT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.drive, "COLAB", tmp_path / "hostname")
    assert doctor.host() == "this machine"
    (tmp_path / "hostname").touch()
    assert doctor.host() == "Colab"
    monkeypatch.setenv("VERTEX_PRODUCT", "COLAB_ENTERPRISE")
    assert doctor.host() == "Colab Enterprise"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert doctor.host() == "Kaggle"
