"""Set-up of a notebook, once its first cell has installed this package."""

from __future__ import annotations

from fastdb.console import ConsoleReport
from fastdb.runtime.wheels import install_missing


def set_up() -> None:
    """Install the packages that this host lacks, and show the version and the GPU.

    Raises:
        SetupError: see `fastdb.runtime.wheels.install_missing`.
    """
    install_missing(ConsoleReport())
    # Needs the packages that were just installed.
    from fastdb import notebook

    notebook.begin()
