"""Copies of a stage's state in the CPU's memory, from which checkpoints are written while training continues."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias

import torch

from fastdb.runtime.memory import memory_to_be_had

Contents: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""The tensors of each file of a checkpoint."""

RESERVE = 1_500_000_000
"""Bytes of memory that must stay free beside a snapshot, for training and compression."""
ALIGNMENT = 64
"""Bytes of a cache line, to which each tensor in the block is aligned."""


class Snapshot:
    """Memory for copies of a stage's state, allocated once, because fresh pages cost more than the copying.

    Attributes:
        pin_failed: whether pinning the memory failed, so that training waits for each copy from the GPU.
    """

    def __init__(self) -> None:
        self.pin_failed = False
        self._block: _Block | None = None
        self._allocating: threading.Thread | None = None

    def preallocate(self, contents: Contents) -> None:
        """Allocate memory for copies of such contents in the background."""
        if self._allocating is None and self._fits(contents):
            self._allocating = threading.Thread(target=self._allocate, args=(contents,), name="snapshot", daemon=True)
            self._allocating.start()

    def copy(self, contents: Contents) -> Contents | None:
        """Return a copy in the CPU's memory, valid until the next call; None if memory is too small for it."""
        if self._allocating is not None:
            self._allocating.join()
        if not self._fits(contents):
            return None
        if self._block is None or not self._block.holds(contents):
            self._allocate(contents)
        if self._block is None:
            return None
        for tensor, place in _pairs(contents, self._block.views):
            # Does not wait for a GPU if the memory is pinned.
            place.copy_(tensor.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._block.views

    def release(self) -> None:
        """Free the memory; earlier copies are invalid then."""
        if self._allocating is not None:
            self._allocating.join()
        self._block = self._allocating = None

    def _allocate(self, contents: Contents) -> None:
        # The old block first: memory for both may not exist.
        self._block = None
        try:
            self._block = _Block(contents)
        except (RuntimeError, MemoryError):
            # Another process took the memory meanwhile; the caller writes without a copy.
            return
        self.pin_failed = self._block.pin_failed

    def _fits(self, contents: Contents) -> bool:
        free = memory_to_be_had()
        held = self._block.bytes if self._block is not None else 0
        return free is None or block_bytes(contents) - held + RESERVE <= free


class _Block:
    """One block of memory with a view for each tensor of some contents.

    torch's allocator of pinned memory rounds each request up to a power of two, 6.26 GB for the 5.19 GB of Stable
    Diffusion 1.5, and as one request even 8.6 GB. So the block is ordinary memory, which CUDA then pins in place.
    """

    def __init__(self, contents: Contents) -> None:
        self.bytes = block_bytes(contents)
        # Zeroed, so that the pages exist before the first copy.
        memory = torch.empty(self.bytes, dtype=torch.uint8).zero_()
        wanted = any(is_on_gpu(tensor) for tensors in contents.values() for tensor in tensors.values())
        self.pin_failed = wanted and not pin(memory)
        if wanted and not self.pin_failed:
            # Keeps the memory until it is unpinned.
            weakref.finalize(self, unpin, memory)
        self.views: dict[str, dict[str, torch.Tensor]] = {}
        start = 0
        for file, tensors in contents.items():
            self.views[file] = {}
            for name, tensor in tensors.items():
                part = memory[start : start + tensor.nbytes]
                self.views[file][name] = part.view(tensor.dtype).view(tensor.shape)
                start += _aligned(tensor.nbytes)

    def holds(self, contents: Contents) -> bool:
        """Return whether contents have the names, shapes and types of the views."""
        if {file: list(tensors) for file, tensors in contents.items()} != {
            file: list(views) for file, views in self.views.items()
        }:
            return False
        return all(
            (tensor.shape, tensor.dtype) == (view.shape, view.dtype) for tensor, view in _pairs(contents, self.views)
        )


def block_bytes(contents: Contents) -> int:
    """Return the bytes of a block for copies of such contents."""
    return sum(_aligned(tensor.nbytes) for tensors in contents.values() for tensor in tensors.values())


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is copied from a GPU."""
    return tensor.device.type == "cuda"


def pin(memory: torch.Tensor) -> bool:
    """Pin memory in place, so that a GPU copies into it at full speed; return whether that succeeded."""
    try:
        failed = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) != 0
    except (RuntimeError, AssertionError, AttributeError):
        return False
    if failed:
        # CUDA keeps the error for the next kernel's check, which would blame training for it.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
    return not failed


def unpin(memory: torch.Tensor) -> None:
    """Undo `pin`."""
    with suppress(RuntimeError, AssertionError, AttributeError):
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def _aligned(count: int) -> int:
    return math.ceil(count / ALIGNMENT) * ALIGNMENT


def _pairs(contents: Contents, others: Contents) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for file, tensors in contents.items():
        for name, tensor in tensors.items():
            yield tensor, others[file][name]
