"""The device that trains, and the precision that suits it."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from fastdb.errors import TrainingError


@dataclass(frozen=True)
class Device:
    """What trains: `kind` is "cuda", "mps" or "cpu"; `precision` is "fp16", "bf16" or "fp32"."""

    kind: str
    name: str
    precision: str
    reason: str

    @property
    def half(self) -> torch.dtype:
        """The data type of weights that are only read."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]


def choose_device(precision: str = "auto") -> Device:
    """Choose the best device here; "auto" precision takes what its hardware multiplies fast.

    Raises:
        TrainingError: half precision was asked for on a processor that has no use for it.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        # A T4 says yes to bf16 and then emulates it, many times slower.
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "auto":
            reason = "its hardware has bf16" if fast_bf16 else "its hardware has fp16 but no bf16"
            return Device("cuda", name, "bf16" if fast_bf16 else "fp16", reason)
        return Device("cuda", name, precision, "as asked")
    if precision == "fp16":
        raise TrainingError(
            "needs a GPU, and none is to be seen here",
            where="precision fp16",
            fix="Set precision to auto, or choose a runtime with a GPU.",
        )
    kind = "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = "fp32" if precision == "auto" else precision
    return Device(kind, kind, chosen, "no CUDA device to be seen" if precision == "auto" else "as asked")


def make_deterministic(device: Device) -> None:
    """Make equal numbers give equal results, bit for bit, each time on this device.

    Operations that cannot are refused by torch with their name rather than silently varied.
    """
    torch.use_deterministic_algorithms(True)
    if device.kind == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


SMALL = 100_000_000
"""Bytes of weights below which a second CPU thread waits more than it works."""


def cpu_threads(weights: int) -> int:
    """How many threads to train with on a CPU, for `weights` bytes of them on the disk.

    The layers of a small model are done sooner than threads agree on who does what: mini's steps take 0.35 s in the
    trainer with two threads and 0.15 s with one (two cores); Stable Diffusion's real size gains from all there are.
    """
    return 1 if weights < SMALL else torch.get_num_threads()


def release_memory() -> None:
    """Give back the GPU memory of models that nobody holds any more, for the trainer's process to use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
