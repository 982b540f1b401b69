"""Processes of this package, isolated from the caller's folder and environment variables.

A trainer outlives the terminal or notebook that starts it. Its result must not depend on a `torch.py` in the current
folder or on a variable such as `ACCELERATE_GRADIENT_ACCUMULATION_STEPS`, which accelerate reads behind our settings.
"""

from __future__ import annotations

import hashlib
import os
import re
import site
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO

from fastdb.errors import TrainingError
from fastdb.runtime.library_settings import SHARED_CORES
from fastdb.runtime.paths import cache_folder

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|(CUDA|NVIDIA|CUBLAS|PYTORCH|OMP|MKL|HF|FASTDB|SSL_CERT)_.*"
    r"|CIVITAI_TOKEN|(WANDB|COLAB|KAGGLE)_.*|(?i:[A-Z]+_PROXY)"
)
_CHANGES_RESULTS = ("NVIDIA_TF32_OVERRIDE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that match `_ALLOWED` and change the arithmetic."""

_LISTS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
_PATHS = re.compile(r"HOME|TMPDIR|SSL_CERT_.*|((CUDA|HF|FASTDB)_.*)?(HOME|ROOT|CACHE|DIR|PATH|YUNET)")

_WORKSPACES = (":4096:8", ":16:8")
"""Values of `CUBLAS_WORKSPACE_CONFIG` with which cuBLAS multiplies the same way twice; torch accepts no others."""

_PACKAGE = Path(__file__).resolve().parents[1]
_DISTRIBUTION = "fast_dreambooth-*.dist-info"
_REQUIRED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "PIL", "pydantic", "yaml")

PASSED = "environment.pass"
"""Setting with the names of further variables."""

PROCESS_FOLDER = "process"
"""Working folder of a session's processes, in its work folder."""


def start_module(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    output: IO[str],
    passed: Collection[str] = (),
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `python -P -m MODULE ARGUMENTS` in `folder`, which is created, with the variables of `environment`.

    Args:
        output: file for its standard output and standard error.
        passed: names of further variables.
        new_session: start it in a process session of its own, which no terminal signals.

    Raises:
        OSError: the folder cannot be written.
        TrainingError: a required package is only in a folder that the process does not use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-P", *(["-s"] if sys.flags.no_user_site else [])]
    return subprocess.Popen(
        [sys.executable, *options, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=new_session,
        cwd=folder,
        env=environment(os.environ, passed),
    )


def environment(variables: Mapping[str, str], passed: Collection[str] = ()) -> dict[str, str]:
    """Return the environment of an isolated process.

    Relative paths become absolute, because they are relative to the caller's folder. Empty entries of path lists, which
    stand for the current folder, are dropped.

    Raises:
        TrainingError: a required package is only in a folder of a variable that is dropped.
    """
    kept = {name: value for name, value in variables.items() if name in passed or is_allowed(name)}
    for name, value in kept.items():
        if name in _LISTS:
            kept[name] = os.pathsep.join(_absolute(entry) for entry in value.split(os.pathsep) if entry)
        elif _PATHS.fullmatch(name):
            kept[name] = _absolute(value)
    _check_packages(variables.get("PYTHONPATH", ""), kept.get("PYTHONPATH", ""))
    if search := [entry for entry in (_own_path(), kept.pop("PYTHONPATH", "")) if entry]:
        kept["PYTHONPATH"] = os.pathsep.join(search)
    workspace = kept.get("CUBLAS_WORKSPACE_CONFIG")
    # The second is the name of torch before 2.9.
    allocator = ",".join(
        filter(None, (kept.pop(name, "") for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")))
    )
    if "expandable_segments" not in allocator:
        # Memory of stages and samples differs in size, and fragments otherwise.
        allocator = f"{allocator},expandable_segments:True".lstrip(",")
    fixed = {
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_ALLOC_CONF": allocator,
        "CUBLAS_WORKSPACE_CONFIG": workspace if workspace in _WORKSPACES else _WORKSPACES[0],
    }
    return {**SHARED_CORES, **kept, **fixed}


def is_allowed(name: str) -> bool:
    """Return whether isolated processes inherit a variable."""
    return _ALLOWED.fullmatch(name) is not None and name not in _CHANGES_RESULTS


def _absolute(path: str) -> str:
    if not path or path.startswith("~"):
        return path
    # The current folder may have been deleted.
    with suppress(FileNotFoundError):
        return os.path.abspath(path)
    return path


def _own_path() -> str:
    """Return the folder from which a process imports this package; empty if Python finds it by itself.

    For a source tree it is a folder with a link to the package alone: the tree may be the current folder, and other
    modules in it would hide those of Python.
    """
    parent = _PACKAGE.parent
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    if str(parent) in [os.path.realpath(folder) for folder in folders]:
        return ""
    if next(parent.glob(_DISTRIBUTION), None) is not None:
        return str(parent)  # Installed with `pip install --target`, together with its requirements.
    link = cache_folder() / f"package-{hashlib.sha256(os.fsencode(_PACKAGE)).hexdigest()[:8]}" / _PACKAGE.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(_PACKAGE, target_is_directory=True)
        return str(link.parent) if link.samefile(_PACKAGE) else str(parent)
    except OSError:
        return str(parent)  # A disk without links.


def _check_packages(given: str, kept: str) -> None:
    """Raise if a required package is only in a folder of PYTHONPATH that is not kept.

    Raises:
        TrainingError: naming the package, and the setting that keeps the variable.
    """
    folders = [_absolute(entry) for entry in given.split(os.pathsep) if entry]
    if kept or not folders:
        return
    others = [_own_path(), *(entry for entry in sys.path if entry and entry not in folders)]
    for name in _REQUIRED:
        if _holds(folders, name) and not _holds(others, name):
            raise TrainingError(
                "is only in a folder of PYTHONPATH, which training does not use",
                subject=f"package {name}",
                fix=f"Allow the variable with --set {PASSED}=[PYTHONPATH], or install the package.",
            )


def _holds(folders: Sequence[str], name: str) -> bool:
    spec = PathFinder.find_spec(name, folders)
    return spec is not None and spec.loader is not None
