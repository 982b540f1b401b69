"""Each GPU of a machine is for one trainer, and a training is one process."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.errors import TrainingError
from fastdb.runtime import device_lock
from fastdb.runtime.device_lock import check_device, refuse_several_processes, visible_devices
from fastdb.runtime.gpu import cuda_uuids

held = device_lock.device_lock


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Act a machine with this many GPUs."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    # Restored after the test, because a trainer's process changes it.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def act(count: int) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n" + "".join(f"echo {index}\n" for index in range(count)), encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    act(2)
    return act


def seen() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def refused(asked: str = "") -> str:
    with pytest.raises(TrainingError) as caught, held(asked, "third"):
        pass
    return str(caught.value)


@pytest.mark.usefixtures("gpus")
def test_each_trainer_gets_the_first_free_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with held("", "cup"):
        assert seen() == "0"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with held("", "dog"):
            assert seen() == "1"
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            assert refused() == (
                "all 2 GPUs are in use by other trainers (cup, dog). Wait until training there has finished, "
                "stop it with fastdb stop cup, or train on the CPU with --device cpu."
            )
            with held("cpu", "third"):
                assert seen() == ""
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with held("", "third"):
            assert seen() == "1", "free again"


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_asked_for_is_the_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with held("cuda:1", "cup"):
        assert seen() == "1"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert refused("cuda:1").startswith("cuda:1 is in use by another trainer (cup). Wait until")
        with held("cuda:0", "dog"):
            assert seen() == "0"


def test_a_single_gpu_is_for_one_trainer(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    with held("", "cup"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert refused().startswith("the GPU is in use by another trainer (cup). Wait until")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("given", "devices"),
    [("1", ["1"]), ("1,0", ["1", "0"]), ("GPU-8932f937, 0", ["GPU-8932f937", "0"]), ("0,-1,1", ["0"]), ("", [])],
)
def test_visible_devices_are_those_of_cuda(given: str, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_devices() == devices
    if devices:
        with held(f"cuda:{len(devices) - 1}", "cup"):
            assert seen() == devices[-1]


@pytest.mark.usefixtures("gpus")
def test_an_index_and_a_uuid_of_one_gpu_are_one_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = {"0": "8932f937-0000", "1": "a1b2c3d4-0000", "GPU-8932f937": "8932f937-0000"}
    monkeypatch.setattr(device_lock, "cuda_uuids", lambda: [uuids[device] for device in visible_devices()])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with held("", "cup"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert refused().startswith("the GPU is in use by another trainer (cup).")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with held("", "dog"):
            assert seen() == "1"


LIBRARY = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number + 3; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { for (int i = 0; i < 16; i++) uuid[i] = device; return 0; }
"""


def test_uuids_come_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "cuda.c").write_text(LIBRARY)
    command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "cuda.c")]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert cuda_uuids() == ["03030303-0303-0303-0303-030303030303", "04040404-0404-0404-0404-040404040404"]
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    assert cuda_uuids() == []


def test_without_gpus_nothing_is_held(gpus: Callable[[int], None]) -> None:
    gpus(0)
    with held("", "cup"), held("", "dog"):
        assert seen() is None


@pytest.mark.parametrize("asked", ["cuda:2", "cuda", "cuda:-1", "gpu", "1"])
def test_a_device_that_does_not_exist_is_refused(asked: str, gpus: Callable[[int], None]) -> None:
    with pytest.raises(TrainingError) as caught:
        check_device(asked, {})
    assert str(caught.value) == (
        f"device '{asked}' is no device of this machine. Choose one of cuda:0, cuda:1, cpu, or leave out --device."
    )
    for right in ("cuda:0", "cuda:1", "cpu", ""):
        check_device(right, {})


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_of_a_launcher_are_refused(name: str) -> None:
    for single in ({}, {name: "1"}, {name: ""}):
        refuse_several_processes(single)
    with pytest.raises(TrainingError) as caught:
        refuse_several_processes({name: "2"})
    assert str(caught.value) == (
        f"a session trains in one process on one GPU, and a launcher started 2 ({name}). "
        "Run fastdb train without torchrun, accelerate launch or mpirun."
    )
