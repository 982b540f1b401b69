"""Locks of this machine's GPUs, each for one trainer, and the refusal of several processes in one training.

A trainer takes its GPU before torch is imported and hides the others from itself, so its own GPU is `cuda` everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fastdb.errors import TrainingError
from fastdb.reporting import argument
from fastdb.runtime.gpu import cuda_uuids, gpu_count
from fastdb.runtime.paths import cache_folder

CPU = "cpu"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PROCESSES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables with the number of processes, as torchrun, accelerate and mpirun set them."""


def refuse_several_processes(variables: Mapping[str, str]) -> None:
    """Raise if this process is one of several that a launcher started.

    Raises:
        TrainingError: naming the variable.
    """
    for name in _PROCESSES:
        if variables.get(name, "").isdigit() and int(variables[name]) > 1:
            raise TrainingError(
                f"a session trains in one process on one GPU, and a launcher started {variables[name]} ({name})",
                fix="Run fastdb train without torchrun, accelerate launch or mpirun.",
            )


def check_device(asked: str, variables: Mapping[str, str]) -> None:
    """Raise if a trainer cannot be started on a device.

    Args:
        asked: `cuda:N`, `cpu`, or "" for the first free GPU.
        variables: of the environment; see `refuse_several_processes`.

    Raises:
        TrainingError: naming the devices of this machine, or the launcher's variable.
    """
    refuse_several_processes(variables)
    if asked in ("", CPU):
        return
    count = len(visible_devices())
    number = re.fullmatch(r"cuda:(\d{1,4})", asked)
    if number is None or int(number[1]) >= count:
        names = [f"cuda:{index}" for index in range(count)]
        raise TrainingError(
            "is no device of this machine",
            subject=f"device {asked!r}",
            fix=f"Choose one of {', '.join([*names, CPU])}, or leave out --device.",
        )


def visible_devices() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as entries of `CUDA_VISIBLE_DEVICES`."""
    given = os.environ.get(_VISIBLE)
    if given is None:
        return [str(index) for index in range(gpu_count())]
    entries: list[str] = []
    for entry in (entry.strip() for entry in given.split(",")):
        # CUDA ignores everything after the first invalid entry.
        if not entry or entry.startswith("-"):
            break
        entries.append(entry)
    return entries if entries and gpu_count() else []


@contextmanager
def device_lock(asked: str, owner: str) -> Iterator[None]:
    """Hold a GPU in this context and hide the others from this process; without GPUs nothing is held.

    Args:
        asked: as in `check_device`.
        owner: the session's name, for the message to other trainers.

    Raises:
        TrainingError: there is no such device, or other trainers hold all that it may be; and as `check_device`.
    """
    check_device(asked, os.environ)
    if asked == CPU:
        os.environ[_VISIBLE] = ""
    devices = visible_devices()
    uuids = cuda_uuids() if devices else []
    # Two entries of the variable, such as an index and a UUID, may denote one GPU.
    keys = dict(zip(devices, uuids, strict=True)) if len(uuids) == len(devices) else {}
    chosen = devices[int(asked.removeprefix("cuda:")) :][:1] if asked not in ("", CPU) else devices
    with ExitStack() as held:
        for device in chosen:
            key = keys.get(device, device)
            lock = FileLock(_file(key, ".lock"))
            with suppress(Timeout):
                held.enter_context(lock.acquire(timeout=0))
                _file(key, ".session").write_text(owner, encoding="utf-8")
                os.environ[_VISIBLE] = device
                break
        else:
            if chosen:
                raise _busy(asked, [_owner(keys.get(device, device)) for device in chosen])
        yield


def _busy(asked: str, owners: list[str]) -> TrainingError:
    which = f"{asked} is" if asked else "the GPU is" if len(owners) == 1 else f"all {len(owners)} GPUs are"
    names = [name for name in dict.fromkeys(owners) if name]
    by = f" ({', '.join(names)})" if names else ""
    stop = f"stop it with fastdb stop {argument(names[0])}" if names else "stop it"
    return TrainingError(
        f"{which} in use by {'another trainer' if len(owners) == 1 else 'other trainers'}{by}",
        fix=f"Wait until training there has finished, {stop}, or train on the CPU with --device cpu.",
    )


def _owner(key: str) -> str:
    with suppress(OSError):
        return _file(key, ".session").read_text(encoding="utf-8")
    return ""


def _file(key: str, suffix: str) -> Path:
    folder = cache_folder() / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"cuda-{re.sub(r'[^0-9A-Za-z.-]', '_', key)}{suffix}"
