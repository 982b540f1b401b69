"""Prediction of the memory that a stage needs, by share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fastdb.config import Config
from fastdb.training.batches import Group
from fastdb.training.disk_estimate import moment_bytes
from fastdb.training.stages import Stage

_RECOMPUTED = 8
"""With gradient checkpointing, the part of the activations (1 / 8) that is recomputed at a time."""


def predicted_shares(
    stage: Stage, config: Config, optimizer: str, half: torch.dtype, groups: Sequence[Group]
) -> dict[str, int]:
    """Return the bytes of weights, gradients, moments, average, activations and cache.

    Those of activations are a lower bound without the workspaces of operations, the others are exact.

    Args:
        half: data type of the computation.
    """
    trained = [weight for module in stage.trained.values() for weight in module.parameters()]
    modules = {id(module): module for module in (*stage.trained.values(), stage.unet)}
    unet = stage.settings.get("unet")
    return {
        "weights": sum(weight.nbytes for module in modules.values() for weight in module.parameters()),
        "gradients": _gradients([weight.nbytes for weight in trained], config),
        "moments": moment_bytes(tuple(weight.numel() for weight in trained), optimizer),
        "average": 4 * sum(weight.numel() for weight in stage.unet.parameters())
        if unet and config.unet.ema_decay
        else 0,
        "activations": _activations(stage, config, half, groups),
        "cache": sum(group.latents.mean.nbytes + group.latents.std.nbytes for group in groups),
    }


def _gradients(sizes: Sequence[int], config: Config) -> int:
    """Return the bytes of the gradients that exist at a time, given those of all."""
    whole = not config.optimizer.fused_backward_pass or config.gradient_accumulation > 1 or config.split_batches
    return sum(sizes) if whole else max(sizes)


def _activations(stage: Stage, config: Config, half: torch.dtype, groups: Sequence[Group]) -> int:
    """Return the bytes that the UNet keeps for its backward pass."""
    rows = 1 if config.split_batches else sum(group.size for group in groups)
    whole = _kept(stage.unet, rows, groups[0].latents.mean.shape[1:], half, checkpointed=False)
    if not config.gradient_checkpointing:
        return whole
    kept = _kept(stage.unet, rows, groups[0].latents.mean.shape[1:], half, checkpointed=True)
    return kept + whole // _RECOMPUTED


def _kept(unet: Any, rows: int, latents: Sequence[int], half: torch.dtype, *, checkpointed: bool) -> int:
    """Return the bytes of all tensors that a forward pass keeps, from a pass without data on torch's meta device."""
    kept: dict[int, Any] = {}
    with torch.device("meta"):
        # diffusers' own `to` warns of data types.
        copy = torch.nn.Module.to(type(unet).from_config(unet.config), half).train()
        inputs = torch.empty(rows, *latents, dtype=half), torch.zeros(rows, dtype=torch.long)
        prompts = torch.empty(rows, 77, unet.config.cross_attention_dim, dtype=half)
    if checkpointed:
        copy.enable_gradient_checkpointing()
    own = {weight.untyped_storage()._cdata for weight in copy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # A reference, so that no other storage gets its address.
            kept[storage._cdata] = storage
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        copy(*inputs, prompts, return_dict=False)
    # Without float32, each weight is converted for the pass, and kept for the backward pass.
    converted = sum(weight.nbytes for weight in copy.parameters()) if half != torch.float32 else 0
    return converted + sum(storage.nbytes() for storage in kept.values())


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps its inputs and its output, as the kernels of CPUs and GPUs do, but no weights of tokens."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Attention by shape only."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result
