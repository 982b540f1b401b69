"""fastdb: fast DreamBooth. Teach Stable Diffusion a new subject from a handful of photos.

Importing loads nothing: each name below is loaded when it is first used. The verbs here print what they report; those
of `fastdb.commands` take a `fastdb.reporting.Report` instead.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastdb.version import __version__

if TYPE_CHECKING:
    from fastdb.config import Config
    from fastdb.errors import FastDBError
    from fastdb.inference.engine import Engine
    from fastdb.inference.request import Request
    from fastdb.interactive import (
        add_images,
        adopt,
        check,
        duplicate,
        evaluate,
        export,
        extend,
        generate,
        list_sessions,
        new,
        open_or_new,
        publish,
        share,
        show,
        stop,
        train,
        try_token,
    )
    from fastdb.notebook.set_up import set_up
    from fastdb.sessions.session import Session

__all__ = [
    "Config",
    "Engine",
    "FastDBError",
    "Request",
    "Session",
    "__version__",
    "add_images",
    "adopt",
    "check",
    "duplicate",
    "evaluate",
    "export",
    "extend",
    "generate",
    "list_sessions",
    "new",
    "open_or_new",
    "publish",
    "set_up",
    "share",
    "show",
    "stop",
    "train",
    "try_token",
]

_MODULES = {
    "Config": "config",
    "Engine": "inference.engine",
    "FastDBError": "errors",
    "Request": "inference.request",
    "Session": "sessions.session",
    "add_images": "interactive",
    "adopt": "interactive",
    "check": "interactive",
    "duplicate": "interactive",
    "evaluate": "interactive",
    "export": "interactive",
    "extend": "interactive",
    "generate": "interactive",
    "list_sessions": "interactive",
    "new": "interactive",
    "open_or_new": "interactive",
    "publish": "interactive",
    "share": "interactive",
    "set_up": "notebook.set_up",
    "show": "interactive",
    "stop": "interactive",
    "train": "interactive",
    "try_token": "interactive",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastdb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastdb.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
