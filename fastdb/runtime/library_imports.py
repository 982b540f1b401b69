"""Imports of diffusers and transformers without the optional packages that training never calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LATER = ("scipy.stats", "scipy.integrate")
"""diffusers' schedulers import them for beta noise schedules and LMS, which takes a second on one thread."""
_ABSENT = "bitsandbytes"
"""diffusers' quantizers import it, and with it torch's compiler, which takes more than a second."""


def import_model_classes() -> None:
    """Import the classes of models that training loads; bitsandbytes and scipy are still imported where they are used.

    Later calls, and calls after diffusers was imported elsewhere, have no effect.
    """
    if "diffusers" in sys.modules:
        return
    with _absent(_ABSENT):
        for name in _LATER:
            _defer(name)
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


class _Deferred(ModuleType):
    """A module that is imported when an attribute of it is used."""

    def __getattr__(self, attribute: str) -> Any:
        # The path is that of its own modules, which Python imports after it; others are looked for in all modules.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)


def _defer(name: str) -> None:
    """Make the next imports of a module take no time, if it is installed."""
    if name in sys.modules or find_spec(name.partition(".")[0]) is None or (spec := find_spec(name)) is None:
        return
    module = _Deferred(name)
    module.__spec__, module.__file__ = spec, spec.origin
    sys.modules[name] = module


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a package that is not imported yet count as not installed in this context."""
    if name in sys.modules:
        yield
        return
    # The documented way to prevent an import; `find_spec` returns None then.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
