"""Deterministic operations of torch, and the single ones that a device does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdb.errors import TrainingError

_ALERT = "does not have a deterministic implementation"
Result = TypeVar("Result")


def is_refusal(error: Exception) -> bool:
    """Return whether torch has refused an operation that is not deterministic."""
    return isinstance(error, RuntimeError) and _ALERT in str(error)


def set_deterministic(kind: str, wanted: bool) -> None:
    """Make torch refuse operations that do not repeat bit by bit on this kind of device, or allow all.

    Uninitialised memory is not filled: no operation of ours reads it, and filling costs a pass over each tensor.
    """
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if kind == "cuda":
        torch.backends.cudnn.benchmark = not wanted
        torch.backends.cudnn.deterministic = wanted


class _Relaxed(TorchDispatchMode):
    """Allows single operations; `learning` adds those that torch refuses.

    torch's own `warn_only` allows all at once, and lets attention choose an algorithm that does not repeat.
    """

    def __init__(self, allowed: dict[Any, str], learning: bool) -> None:
        super().__init__()
        self._allowed, self._learning = allowed, learning

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._allowed:
            try:
                return func(*args, **(kwargs or {}))
            except RuntimeError as error:
                if not self._learning or not is_refusal(error):
                    raise
                self._allowed[func] = str(error).partition(f" {_ALERT}")[0]
        torch.use_deterministic_algorithms(False)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.use_deterministic_algorithms(True)


@dataclass
class Determinism:
    """Runs work before the first step to find operations that have no deterministic form on this device.

    Attributes:
        report: called with the name of each operation that is found.
    """

    report: Callable[[str], object]
    _allowed: dict[Any, str] = field(default_factory=dict)

    def run(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which runs again, with the operations allowed, if torch refuses some."""
        try:
            with self.applied():
                return work()
        except RuntimeError as error:
            if not is_refusal(error):
                raise
        known = set(self._allowed)
        with _Relaxed(self._allowed, learning=True):
            result = work()
        for operation, name in self._allowed.items():
            if operation not in known:
                self.report(name)
        return result

    def applied(self) -> AbstractContextManager[object]:
        """Return a context in which the operations found so far are allowed, and no others."""
        return _Relaxed(self._allowed, learning=False) if self._allowed else nullcontext()


@contextmanager
def explain_refusal(where: str) -> Iterator[None]:
    """Turn torch's refusal of an operation into one line with a remedy.

    Raises:
        TrainingError: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        name, alert, _ = str(error).partition(f" {_ALERT}")
        if not alert:
            raise
        raise TrainingError(
            f"operation {name} does not repeat bit by bit on this device",
            where=where,
            fix="Run the same command again with --set deterministic=false; "
            "results then match an uninterrupted run only up to rounding.",
        ) from error
