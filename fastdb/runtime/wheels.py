"""Installation of the locked packages that this host lacks, from Google Drive or the package index.

Packages of the host are never replaced: torch and its relatives fit the host's GPU, and a notebook's kernel has loaded
some packages. Uses the standard library alone, because nothing else is installed yet.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import invalidate_caches, metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from fastdb.errors import SetupError
from fastdb.reporting import SILENT, Note, Report
from fastdb.runtime import drive, paths
from fastdb.runtime.gpu import has_nvidia_gpu

DISTRIBUTION = "fast-dreambooth"
"""Our name on the package index, where `fastdb` is another project."""

LOCKS = paths.WHEELS / "locks"

_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)")


@dataclass(frozen=True)
class Pin:
    """A package of a lock, with its lines there."""

    name: str
    version: str
    text: str


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def host_kind() -> str:
    """Return the host that a lock is for: `colab-gpu`, `cuda` or `cpu`."""
    if not has_nvidia_gpu():
        return "cpu"
    return "colab-gpu" if drive.COLAB.exists() else "cuda"


def lock_file(host: str) -> Path | None:
    """Return the lock for a host, this version of Python and this platform, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return None
    file = LOCKS / f"{host}-{sys.version_info.major}.{sys.version_info.minor}.txt"
    return file if file.is_file() else None


def pins(lock: Path) -> list[Pin]:
    """Return the packages of a lock."""
    blocks = re.split(r"(?m)^(?=[^\s#])", lock.read_text(encoding="utf-8"))
    matches = [(_PIN.match(block), block) for block in blocks]
    return [Pin(match["name"], match["version"], block) for match, block in matches if match]


def missing(wanted: Sequence[Pin]) -> list[Pin]:
    """Return the packages that are not installed in any version.

    No build of OpenCV is added to another, because all share one folder.
    """
    has_opencv = any((each.name or "").lower().startswith("opencv") for each in metadata.distributions())
    return [pin for pin in wanted if not installed(pin.name) and not (has_opencv and pin.name.startswith("opencv"))]


def install_missing(report: Report = SILENT) -> list[str]:
    """Install the locked packages that this host lacks; return their names.

    Wheels are kept in `Fast-Dreambooth/wheels` on Google Drive if it is mounted, and installed from there the next
    time, without network access.

    Raises:
        SetupError: torch is missing, nothing is locked for this host, or the installation failed.
    """
    if not installed("torch"):
        kind = "with CUDA" if has_nvidia_gpu() else "for the CPU"
        raise SetupError(
            "is not installed, and its build depends on the machine",
            subject="torch",
            fix=f"Install torch 2.10 or newer {kind} first, as pytorch.org describes, and run set-up again.",
        )
    lock = lock_file(host_kind())
    if lock is None:
        return _refuse_unlocked()
    lacking = missing(pins(lock))
    if lacking:
        names = ", ".join(f"{pin.name} {pin.version}" for pin in lacking)
        report.note(Note("installing", names))
        with TemporaryDirectory() as place:
            requirements = Path(place, "requirements.txt")
            requirements.write_text("".join(pin.text for pin in lacking), encoding="utf-8")
            _install(lacking, requirements, report)
        invalidate_caches()
    return [pin.name for pin in lacking]


def required(extras: Sequence[str] = ()) -> list[str]:
    """Return the requirements of the installed distribution, such as `tqdm>=4.66`, with those of some extras."""
    lines = metadata.requires(DISTRIBUTION) or []
    split = [(line.partition(";")[0].strip(), re.search(r'extra == "([\w-]+)"', line)) for line in lines]
    return [requirement for requirement, extra in split if extra is None or extra[1] in extras]


def _refuse_unlocked() -> list[str]:
    """Return an empty list if nothing is missing on a host without a lock.

    Raises:
        SetupError: a required package is missing.
    """
    names = [_PIN_NAME.match(line)[0] for line in required()]  # type: ignore[index]
    lacking = [name for name in names if not installed(name)]
    if lacking:
        raise SetupError(
            f"{'is' if len(lacking) == 1 else 'are'} not installed, and not locked for Python "
            f"{platform.python_version()} on {platform.machine()}",
            subject=", ".join(lacking),
            fix=f"Install them with pip install {' '.join(lacking)}, and run set-up again.",
        )
    return []


_PIN_NAME = re.compile(r"[\w.-]+")


def _install(lacking: Sequence[Pin], requirements: Path, report: Report) -> None:
    """Install from the wheels on Drive if all are there, else from the index, and keep those wheels on Drive."""
    mounted = paths.mounted_drive()
    kept = mounted / paths.FOLDER / "wheels" if mounted else None
    offline = ["--no-index", "--find-links"]
    if kept is not None and all(_wheel_of(pin, kept) for pin in lacking):
        try:
            return _run([*_installer(), *offline, str(kept)], requirements)
        except SetupError as error:
            # A wheel on Drive can be cut off or outdated.
            report.note(Note("kept wheels unusable", str(kept), str(error.what)))
    if kept is None or not installed("pip"):
        return _run(_installer(), requirements)
    fetched = requirements.with_name("wheels")
    _run([sys.executable, "-m", "pip", "download", *_PIP, "--dest", str(fetched)], requirements)
    _run([*_installer(), *offline, str(fetched)], requirements)
    _keep(fetched, kept, report)
    return None


_PIP = ("--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:")


def _installer() -> list[str]:
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--quiet", "--no-config", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", *_PIP]


def _run(command: Sequence[str], requirements: Path) -> None:
    """Run pip or uv on a file of locked requirements.

    Raises:
        SetupError: it failed, with its own reason.
    """
    # Colab has set variables for constraints that name missing files.
    environment = {name: value for name, value in os.environ.items() if "CONSTRAINT" not in name}
    line = [*command, "--no-deps", "--require-hashes", "--requirement", str(requirements)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SetupError(
            " ".join(done.stderr.split())[-800:] or f"{command[0]} ended with exit code {done.returncode}",
            where="packages could not be installed",
            fix="Check the network connection, and run set-up again.",
        )


def _wheel_of(pin: Pin, folder: Path) -> Path | None:
    start = f"{re.sub('[-_.]+', '_', pin.name).lower()}-{pin.version}-"
    names = folder.glob("*.whl") if folder.is_dir() else ()
    return next((path for path in names if path.name.lower().startswith(start)), None)


def _keep(fetched: Path, kept: Path, report: Report) -> None:
    """Copy wheels to Drive, each under a temporary name first; a failure is reported and costs nothing else."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for wheel in fetched.glob("*.whl"):
            temporary = kept / f".{wheel.name}.part"
            shutil.copyfile(wheel, temporary)
            temporary.replace(kept / wheel.name)
    except OSError as error:
        report.note(Note("wheels not kept", str(kept), str(error.strerror or error)))
