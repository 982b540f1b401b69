"""Set-up of a notebook, once its first cell has installed this package; it loads no verbs, to take a moment only."""

from __future__ import annotations

import platform

from fastdb import console
from fastdb.console import ConsoleReport
from fastdb.downloads import small_models
from fastdb.errors import FastDBError
from fastdb.notebook.wording import use_wording
from fastdb.runtime.drive import colab
from fastdb.runtime.gpu import find_gpu
from fastdb.runtime.wheels import install_missing
from fastdb.version import __version__


def set_up() -> None:
    """Install the packages that this host lacks, and show the version and the GPU.

    Raises:
        SetupError: see `fastdb.runtime.wheels.install_missing`.
    """
    install_missing(ConsoleReport())
    begin()


def begin() -> None:
    """Show the version and the GPU, and in Colab download the small models that the wheel lacks, once."""
    use_wording()
    gpu = find_gpu()
    console.say(f"fastdb {__version__}, Python {platform.python_version()}, {gpu or 'no NVIDIA GPU found'}")
    if gpu is None and colab("runtime") is not None:
        console.say("Training needs a GPU: choose one under Runtime > Change runtime type, and run this cell again")
    if colab("runtime") is not None:
        for name in small_models.small_models():
            if small_models.find(name) is None:
                _fetch(name)


def _fetch(name: str) -> None:
    try:
        console.say(f"Downloaded {small_models.fetch(name, timeout=10)}")
    except FastDBError as error:
        console.say(f"Continuing without {name}: {error}")
