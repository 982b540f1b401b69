"""Choice of device and precision."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fastdb.errors import TrainingError
from fastdb.runtime.device import Device, choose_device, cpu_threads


@pytest.fixture
def graphics(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A GPU as far as torch's answers go; append True for one with bf16 in its hardware."""
    hardware: list[bool] = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or bool(hardware)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    return hardware


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_a_t4_trains_in_fp16_though_it_says_yes_to_bf16(graphics: list[bool]) -> None:
    assert choose_device() == Device("cuda", "Tesla T4", "fp16", "its hardware has fp16 but no bf16")


def test_a_t4_is_refused_bf16_which_it_emulates(graphics: list[bool]) -> None:
    with pytest.raises(TrainingError) as caught:
        choose_device("bf16")
    assert str(caught.value) == (
        "bf16 on Tesla T4 is emulated and many times slower than fp16. "
        "Set precision to auto or fp16, such as --set precision=auto."
    )
    assert choose_device("auto").precision == choose_device("fp16").precision == "fp16"
    graphics.append(True)
    assert choose_device("bf16").precision == "bf16"


def test_a_newer_one_trains_in_bf16(graphics: list[bool]) -> None:
    graphics.append(True)
    assert choose_device().precision == "bf16"
    assert choose_device("fp32") == Device("cuda", "Tesla T4", "fp32", "as requested")


@pytest.mark.usefixtures("processor")
def test_a_processor_trains_in_fp32() -> None:
    device = choose_device()
    assert (device.kind, device.precision, device.half) == ("cpu", "fp32", torch.float32)
    assert choose_device("bf16").half == torch.bfloat16


@pytest.mark.usefixtures("processor")
def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"^precision fp16 needs a GPU, and this machine has none"):
        choose_device("fp16")


def test_a_small_model_trains_on_one_thread_and_a_large_one_on_all() -> None:
    assert cpu_threads(20_000_000) == 1
    assert cpu_threads(2_000_000_000) == torch.get_num_threads()
