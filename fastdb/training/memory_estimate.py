"""Prediction of the memory that a stage needs, by share.

A step runs once on tensors without data (`torch._subclasses.fake_tensor`), which have the sizes and lifetimes of the
real ones. So the prediction contains what autograd keeps, what gradient checkpointing computes again, and the gradients
that replace activations during the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdb.config import Config
from fastdb.runtime.device import Device
from fastdb.training.batches import Group
from fastdb.training.disk_estimate import moment_bytes
from fastdb.training.fused_backward import TOGETHER
from fastdb.training.stages import Stage, checkpoint_gradients

COPY = "copy"
"""Share of a checkpoint's copy in memory; without it training waits while a checkpoint is written."""
_LATENT = 8
"""Pixels of an image side per latent."""
_HEAP, _BLOCKS = 1.35, 1.0
"""Resident memory per byte of activations and gradients in glibc's heap, whose gaps grow, and in blocks that are
returned, see `runtime/memory.py`; measured (benchmarks/RESULTS.md, "Memory of a training")."""
_FIXED = 40_000_000
"""Bytes of a trainer on a CPU beside tensors: tokenizer, modules, kernels that oneDNN compiles, measured."""


def predicted_shares(
    stage: Stage,
    config: Config,
    optimizer: str,
    device: Device,
    groups: Sequence[Group],
    peaks: dict[Any, int] | None = None,
) -> dict[str, int]:
    """Return the bytes of weights, gradients, moments, average, activations, cache and, on a CPU, more.

    Their sum is the peak. On a CPU "copy" is that of a checkpoint which is saved before the last step, and "other" the
    memory beside tensors; on a GPU the context of CUDA, about 0.5 GB, is left out.

    Args:
        stage: only shapes are used, so it may be trained with other settings than `config`.
        peaks: of earlier predictions for the stage, which are not computed again.
    """
    trained = stage.all_weights
    modules = {id(module): module for module in (*stage.trained.values(), stage.unet)}
    sizes, on_cpu = [4 * weight.numel() for weight in trained], device.kind == "cpu"
    averaged = "unet" in stage.settings and config.unet.ema_decay and (on_cpu or not config.unet.ema_on_cpu)
    rows = 1 if config.split_batches else sum(group.size for group in groups)
    gradients, peaks = _gradients(sizes, config), {} if peaks is None else peaks
    checkpointing, fused = config.gradient_checkpointing, config.optimizer.fused_backward_pass
    key = (rows, _side(config), checkpointing, _accumulates(config), fused)
    slack = 1.0 if not on_cpu else _BLOCKS if checkpointing else _HEAP
    if key not in peaks:
        peaks[key] = _peak(stage, config, device, rows, groups[0].latents.mean.shape[1])
    shares = {
        "weights": sum(weight.nbytes for module in modules.values() for weight in module.parameters()),
        "gradients": gradients,
        "moments": moment_bytes(tuple(weight.numel() for weight in trained), optimizer),
        "average": 4 * sum(weight.numel() for weight in stage.weights("unet")) if averaged else 0,
        "activations": max(0, int(slack * peaks[key]) - gradients),
        "cache": sum(2 * group.latents.mean.shape[:2].numel() * 4 * _side(config) ** 2 for group in groups),
    }
    if on_cpu:
        shares |= {COPY: sum(sizes) + shares["moments"] + shares["average"], "other": _FIXED}
    return shares


def needed(shares: Mapping[str, int]) -> int:
    """Return the bytes without which a stage cannot train."""
    return sum(size for share, size in shares.items() if share != COPY)


def _side(config: Config) -> int:
    return config.resolution // _LATENT


def _accumulates(config: Config) -> bool:
    """Return whether gradients exist before a backward pass."""
    return config.gradient_accumulation > 1 or config.split_batches


def _gradients(sizes: Sequence[int], config: Config) -> int:
    """Return the bytes of the gradients that exist at a time, given those of all."""
    if config.optimizer.fused_backward_pass and not _accumulates(config):
        return min(sum(sizes), TOGETHER + max(sizes))
    return sum(sizes)


def _peak(stage: Stage, config: Config, device: Device, rows: int, channels: int) -> int:
    """Return the peak of what a forward and a backward pass allocate, gradients included, in bytes."""
    with torch.device("meta"):
        unet = type(stage.unet).from_config(stage.unet.config)
        encoder = stage.trained.get("text_encoder")
        encoder = type(encoder)(encoder.config) if encoder is not None else None
    parts = {"unet": unet, "text_encoder": encoder} if encoder is not None else {"unet": unet}
    meter = _Meter()
    with _isolated(), FakeTensorMode(allow_non_fake_inputs=True):
        for name, module in parts.items():
            trains = name in stage.trained
            _without_data(module, device, stage.method.dtype(device.half) if trains else device.half)
            module.train().requires_grad_(False)
            if trains:
                stage.method.attach(module, name)
            if config.gradient_checkpointing:
                checkpoint_gradients(module)
        with _gradients_of(parts, config, meter), meter:
            _pass(unet, encoder, config, device, rows, channels)
    return meter.peak


@contextmanager
def _gradients_of(parts: Mapping[str, Any], config: Config, meter: _Meter) -> Iterator[None]:
    """Give weights the gradients that exist before a backward pass, or free each as a fused update does."""
    weights = [weight for module in parts.values() for weight in module.parameters() if weight.requires_grad]
    if _accumulates(config):
        with meter:
            for weight in weights:
                weight.grad = torch.empty_like(weight)
    elif config.optimizer.fused_backward_pass:
        for weight in weights:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    yield


def _pass(unet: Any, encoder: Any, config: Config, device: Device, rows: int, channels: int) -> None:
    """Run a forward and a backward pass as the loop does."""
    kind, half = device.kind, device.half
    latents = torch.empty(rows, channels, _side(config), _side(config), device=kind)
    timesteps = torch.zeros(rows, dtype=torch.long, device=kind)
    with torch.autocast(kind, half, enabled=half != torch.float32):
        if encoder is None:
            conditioning = torch.empty(rows, 77, unet.config.cross_attention_dim, device=kind)
        else:
            tokens = torch.zeros(rows, encoder.config.max_position_embeddings, dtype=torch.long, device=kind)
            conditioning = encoder(tokens)[0]
        prediction = unet(torch.empty_like(latents), timesteps, conditioning, return_dict=False)[0]
    (prediction.float() - latents).square().mean().backward()


def _without_data(module: torch.nn.Module, device: Device, dtype: torch.dtype) -> None:
    """Replace weights and buffers by such without data on a device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype, device=device.kind))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device.kind)


@contextmanager
def _isolated() -> Iterator[None]:
    """Leave torch's random state as it is."""
    with torch.random.fork_rng(), torch.enable_grad():
        yield


class _Meter(TorchDispatchMode):
    """Bytes of the tensors that operations in this context have made and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            self._now -= size
            del self._alive[key]

        self._now += size
        self._alive[key] = weakref.ref(storage, freed)
