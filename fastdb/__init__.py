"""fastdb: fast DreamBooth. Teach Stable Diffusion a new subject from a handful of photos.

Importing does nothing: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdb.config import Config
    from fastdb.errors import FastDBError
    from fastdb.inference.engine import Engine, Request
    from fastdb.overview import list_sessions, show
    from fastdb.results import evaluate, export, generate
    from fastdb.sessions.session import Session
    from fastdb.workflow import add_images, new, open_or_new, stop, train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Engine",
    "FastDBError",
    "Request",
    "Session",
    "add_images",
    "evaluate",
    "export",
    "generate",
    "list_sessions",
    "new",
    "open_or_new",
    "show",
    "stop",
    "train",
]

_HOMES = {
    "Config": "fastdb.config",
    "Engine": "fastdb.inference.engine",
    "FastDBError": "fastdb.errors",
    "Request": "fastdb.inference.engine",
    "Session": "fastdb.sessions.session",
    "evaluate": "fastdb.results",
    "export": "fastdb.results",
    "generate": "fastdb.results",
    "list_sessions": "fastdb.overview",
    "show": "fastdb.overview",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fastdb' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "fastdb.workflow")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
