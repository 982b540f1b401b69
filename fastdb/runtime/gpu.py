"""The NVIDIA GPU of this machine as its driver reports it, without torch, which would occupy some of its memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BF16_FROM = 8.0
"""Compute capability of Ampere, the first NVIDIA GPUs with bf16 in hardware."""


@dataclass(frozen=True)
class GPU:
    """An NVIDIA GPU."""

    name: str
    memory: int
    """Bytes."""
    capability: float
    """CUDA compute capability, such as 7.5; 0 if the driver does not report it."""

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 is native; a T4 reports support and emulates it."""
        return self.capability >= _BF16_FROM

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 2**30:.1f} GiB"


def has_nvidia_gpu() -> bool:
    """Return whether there is an NVIDIA driver."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").is_dir()


def find_gpu() -> GPU | None:
    """Return the first NVIDIA GPU, or None."""
    lines = _query("name,memory.total,compute_cap")
    fields = [field.strip() for field in (lines or [""])[0].split(",")]
    if len(fields) != 3 or not fields[1].isdigit():
        return None
    number = fields[2].replace(".", "", 1).isdigit()
    return GPU(fields[0], int(fields[1]) << 20, float(fields[2]) if number else 0.0)


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs."""
    # Some containers have the driver without its programs.
    return len(_query("index")) or sum(1 for _ in Path("/proc/driver/nvidia/gpus").glob("*"))


_UUIDS = """
import ctypes, uuid
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
uuid_of = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for number in range(count.value):
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    assert cuda.cuDeviceGet(ctypes.byref(device), number) == 0 and uuid_of(raw, device) == 0
    print(uuid.UUID(bytes=bytes(raw)))
"""
"""Program that prints the UUID of each CUDA device, as `torch.cuda.get_device_properties(number).uuid` has it."""


def cuda_uuids() -> list[str]:
    """Return the UUIDs of the GPUs, or parts of GPUs, that this process may use, in CUDA's order; empty if unknown.

    A process of its own asks the driver, because one that has asked keeps the GPUs that it saw then.
    """
    answer = subprocess.run([sys.executable, "-I", "-c", _UUIDS], capture_output=True, text=True, check=False)
    return [] if answer.returncode else answer.stdout.split()


def _query(fields: str) -> list[str]:
    """Return the driver's answer, a line for each GPU; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return [] if answer.returncode else [line for line in answer.stdout.splitlines() if line.strip()]
