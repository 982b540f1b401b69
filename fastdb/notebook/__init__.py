"""Functions for the cells of the notebooks, beside the verbs: pictures to look at, uploads, downloads, a live panel."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdb.notebook.cells import FIELDS, TRIAL, Ending, add_images, finish, open_drive, open_session
    from fastdb.notebook.panel import Panel, latest
    from fastdb.notebook.picture_cells import compare, export, generate, pictures, samples
    from fastdb.notebook.session_cells import delete, free, import_session, rename, share
    from fastdb.notebook.train_cell import train

__all__ = [
    "FIELDS",
    "TRIAL",
    "Ending",
    "Panel",
    "add_images",
    "compare",
    "delete",
    "export",
    "finish",
    "free",
    "generate",
    "import_session",
    "latest",
    "open_drive",
    "open_session",
    "pictures",
    "rename",
    "samples",
    "share",
    "train",
]

_MODULES = {
    "FIELDS": "cells",
    "TRIAL": "cells",
    "Ending": "cells",
    "Panel": "panel",
    "add_images": "cells",
    "compare": "picture_cells",
    "delete": "session_cells",
    "export": "picture_cells",
    "finish": "cells",
    "free": "session_cells",
    "generate": "picture_cells",
    "import_session": "session_cells",
    "latest": "panel",
    "open_drive": "cells",
    "open_session": "cells",
    "pictures": "picture_cells",
    "rename": "session_cells",
    "samples": "picture_cells",
    "share": "session_cells",
    "train": "train_cell",
}
"""Module of each name, imported when it is first used: the set-up cell needs none but its own."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastdb.notebook' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastdb.notebook.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
