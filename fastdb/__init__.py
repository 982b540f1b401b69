"""fastdb: fast DreamBooth. Teach Stable Diffusion a new subject from a handful of photos.

Importing does nothing: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastdb.version import __version__

if TYPE_CHECKING:
    from fastdb.commands.results import evaluate, export, generate
    from fastdb.commands.sessions import add_images, list_sessions, new, open_or_new, show
    from fastdb.commands.training import stop, train
    from fastdb.config import Config
    from fastdb.errors import FastDBError
    from fastdb.inference.engine import Engine, Request
    from fastdb.sessions.session import Session

__all__ = [
    "Config",
    "Engine",
    "FastDBError",
    "Request",
    "Session",
    "__version__",
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

_MODULES = {
    "Config": "config",
    "Engine": "inference.engine",
    "FastDBError": "errors",
    "Request": "inference.engine",
    "Session": "sessions.session",
    "add_images": "commands.sessions",
    "evaluate": "commands.results",
    "export": "commands.results",
    "generate": "commands.results",
    "list_sessions": "commands.sessions",
    "new": "commands.sessions",
    "open_or_new": "commands.sessions",
    "show": "commands.sessions",
    "stop": "commands.training",
    "train": "commands.training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastdb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastdb.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
