"""Devices for training, and their precision."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastdb.errors import TrainingError, is_out_of_memory, out_of_memory
from fastdb.runtime.memory import memory_to_be_had, return_freed_memory


@dataclass(frozen=True)
class Device:
    """Training device.

    `kind` is "cuda", "mps" or "cpu"; `precision` is "fp16", "bf16" or "fp32".
    """

    kind: str
    name: str
    precision: str
    reason: str

    @property
    def half(self) -> torch.dtype:
        """Data type of frozen weights."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]


def choose_device(precision: str = "auto", asked: str = "") -> Device:
    """Return the best device of this machine, with the fastest precision of its hardware for "auto".

    Args:
        asked: the device that a person asked for, such as `cuda:1`; this process sees no other GPU.

    Raises:
        TrainingError: the hardware lacks the precision, or torch cannot use the GPU that was asked for.
    """
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError(
            f"torch {torch.__version__} cannot use it",
            where=f"device {asked}",
            fix="Install a torch that fits the driver, or leave out --device to train without a GPU.",
        )
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        # A T4 reports bf16 support and then emulates it, many times slower.
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not fast_bf16:
            raise TrainingError(
                "is emulated and many times slower than fp16",
                subject=f"bf16 on {name}",
                fix="Set precision to auto or fp16, such as --set precision=auto.",
            )
        if precision == "auto":
            reason = "its hardware has bf16" if fast_bf16 else "its hardware has fp16 but no bf16"
            return Device("cuda", name, "bf16" if fast_bf16 else "fp16", reason)
        return Device("cuda", name, precision, "as requested")
    if precision == "fp16":
        raise TrainingError(
            "needs a GPU, and this machine has none",
            subject="precision fp16",
            fix="Set precision to auto, or choose a runtime with a GPU.",
        )
    kind = "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = "fp32" if precision == "auto" else precision
    return Device(kind, kind, chosen, "no CUDA device found" if precision == "auto" else "as requested")


SMALL = 100_000_000
"""Bytes of weights below which a second CPU thread waits more than it computes."""


def cpu_threads(weights: int) -> int:
    """Return the number of CPU threads to train with, for `weights` bytes of weights.

    Threads cost more than they save in the layers of a small model: a step of mini takes 0.35 s with two threads and
    0.15 s with a single thread (two cores). Models of the size of Stable Diffusion gain from all threads.
    """
    return 1 if weights < SMALL else torch.get_num_threads()


def available_memory(kind: str) -> int | None:
    """Return the bytes that this process could allocate on a kind of device; None if unknown."""
    if kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return memory_to_be_had()


def release_memory() -> None:
    """Free the memory of unreferenced models, for other processes to use."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(where: str, fix: str) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU or of this machine into one line with a remedy.

    Raises:
        TrainingError: instead of that error.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, where, fix) from error
