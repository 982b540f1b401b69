"""A stage's state as it is now, copied within a moment, so that it can be written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TypeAlias

import torch

from fastdb.runtime.memory import memory_to_be_had

Contents: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""The tensors of each file to be."""

RESERVE = 1_500_000_000
"""Bytes of memory that must stay free beside a copy: for what training and packing allocate on the way."""


class Snapshot:
    """Memory for copies of one stage's state, taken once and used again: fresh pages cost more than the copying."""

    def __init__(self) -> None:
        self._copies: dict[str, dict[str, torch.Tensor]] = {}
        self._taking: threading.Thread | None = None

    def make_ready(self, contents: Contents) -> None:
        """Take the memory for copies of such contents in the background, so that the first need not wait for it."""
        if self._taking is None and self._fits(contents):
            self._taking = threading.Thread(target=self._take, args=(contents,), name="snapshot", daemon=True)
            self._taking.start()

    def _take(self, contents: Contents) -> None:
        try:
            self._copies = {
                file: {name: _memory_for(tensor).zero_() for name, tensor in tensors.items()}
                for file, tensors in contents.items()
            }
        except RuntimeError:
            # Something else took it meanwhile; whether it is there when it is wanted is looked at then.
            self._copies = {}

    def of(self, contents: Contents) -> Contents | None:
        """A copy in the CPU's memory, which the next call overwrites; None where there is no memory for one."""
        if self._taking is not None:
            self._taking.join()
        if not self._fits(contents):
            return None
        copied: dict[str, dict[str, torch.Tensor]] = {}
        for file, tensors in contents.items():
            kept = self._copies.get(file, {})
            copied[file] = {name: _copied(tensor.detach(), kept.get(name)) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._copies = copied
        return copied

    def _fits(self, contents: Contents) -> bool:
        wanted = sum(tensor.nbytes for tensors in contents.values() for tensor in tensors.values())
        held = sum(tensor.nbytes for tensors in self._copies.values() for tensor in tensors.values())
        there = memory_to_be_had()
        return there is None or wanted - held + RESERVE <= there


def _copied(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    if into is None or into.shape != tensor.shape or into.dtype != tensor.dtype:
        into = _memory_for(tensor)
    return into.copy_(tensor, non_blocking=True)


def _memory_for(tensor: torch.Tensor) -> torch.Tensor:
    # Pinned memory lets the GPU write at its own speed.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
