"""Examination of this host: device, memory, packages and their known conflicts."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from fastdb.reporting import Note, format_bytes
from fastdb.runtime import drive, memory, paths
from fastdb.runtime.gpu import has_nvidia_gpu
from fastdb.runtime.wheels import DISTRIBUTION, installed, required
from fastdb.version import __version__

if TYPE_CHECKING:
    from packaging.version import Version

    from fastdb.runtime.device import Device

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
"""Builds of OpenCV, which share the folder `cv2`."""

Versions = Callable[[str], str | None]
"""Returns the installed version of a distribution, or None."""


@dataclass(frozen=True)
class Package:
    """A required package, its tested range and the installed version."""

    name: str
    tested: str
    version: str | None
    fits: bool


@dataclass(frozen=True)
class Check:
    """A part that was tried, and why it does not work; the reason is empty if it works."""

    name: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Examination:
    """Facts about this host by topic, required packages, problems with remedies, and results of trials.

    Warnings concern what training does not use, or uses if it is there.
    """

    facts: tuple[tuple[str, str], ...]
    packages: tuple[Package, ...]
    problems: tuple[Note, ...]
    warnings: tuple[Note, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no problem was found and everything that was tried works."""
        return not self.problems and not any(check.reason for check in self.checks)


def examine() -> Examination:
    """Return facts and problems of this host, from its packages' metadata and, for the device, torch."""
    packages = packages_of(required_here(), installed)
    facts = [
        ("fastdb", f"{__version__}, installed as {DISTRIBUTION} {installed(DISTRIBUTION) or '(source tree)'}"),
        ("host", f"{host()}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        *_device(),
        ("memory", _memory()),
        ("Google Drive", str(paths.mounted_drive() or "not mounted")),
    ]
    warnings = traps(installed, gpu=has_nvidia_gpu())
    return Examination(tuple(facts), tuple(packages), tuple(problems(packages)), tuple(warnings))


def host() -> str:
    """Return the kind of this host."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    if "VERTEX_PRODUCT" in os.environ:
        return "Colab Enterprise"
    return "Colab" if drive.COLAB.exists() else "this machine"


def required_here() -> list[str]:
    """Return the requirements of this host; none if the package is not installed."""
    try:
        return required(("gpu",) if has_nvidia_gpu() else ())
    except metadata.PackageNotFoundError:
        return []


def packages_of(requirements: Sequence[str], versions: Versions) -> list[Package]:
    """Return the required packages with their installed versions."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requirements):
        version = versions(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        found.append(Package(requirement.name, str(requirement.specifier), version, fits))
    return found


def problems(packages: Sequence[Package]) -> list[Note]:
    """Return the required packages that are missing or outside their tested range."""
    notes = []
    for package in packages:
        if package.version is None and package.name != "bitsandbytes":
            notes.append(Note("package missing", package.name, package.tested))
        elif package.version is not None and not package.fits:
            notes.append(Note("package untested", f"{package.name} {package.version}", package.tested))
    return notes


def traps(versions: Versions, *, gpu: bool) -> list[Note]:
    """Return the known conflicts among installed packages."""
    notes = []
    if gpu and versions("bitsandbytes") is None:
        notes.append(Note("bitsandbytes missing"))
    torchao, peft = _version(versions, "torchao"), _version(versions, "peft")
    if torchao and peft and torchao.release < (0, 16) and peft.release >= (0, 19):
        notes.append(Note("torchao breaks peft", f"torchao {torchao}", f"peft {peft}"))
    builds = [f"{name} {version}" for name in OPENCV if (version := versions(name))]
    if len(builds) > 1:
        notes.append(Note("several OpenCV", ", ".join(builds)))
    return notes


def _version(versions: Versions, name: str) -> Version | None:
    from packaging.version import Version

    version = versions(name)
    return Version(version) if version else None


def _device() -> list[tuple[str, str]]:
    if installed("torch") is None:
        return [("device", "unknown: torch is not installed")]
    import torch

    device = this_device()
    if device.kind != "cuda":
        reason = "no CUDA device found" if not has_nvidia_gpu() else "torch does not find the NVIDIA GPU"
        return [("device", f"{device.name}, {device.precision} ({reason})")]
    free, total = torch.cuda.mem_get_info()
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return [
        ("device", f"{device.name}, {format_bytes(free)} of {format_bytes(total)} free"),
        ("precision", f"{device.precision}; bf16 is {'native' if native else 'emulated, which is slow'}"),
    ]


def this_device() -> Device:
    """Return the device that training would use here; torch is loaded for this."""
    from fastdb.runtime.device import choose_device

    return choose_device()


def _memory() -> str:
    free = memory.memory_to_be_had()
    return "unknown" if free is None else f"{format_bytes(free)} available"
