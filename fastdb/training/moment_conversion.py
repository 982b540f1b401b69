"""Conversion of a checkpoint's moments between 32 and 8 bits, so that a stage continues with the other optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from fastdb.training.adamw8bit import NESTED, SMALL, dequantize, dynamic_map, quantize

State: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors and plain numbers by the names that `state_tensors` gives them."""

_MOMENTS = {"exp_avg": "1", "exp_avg_sq": "2"}
"""Names of the moments in torch's AdamW, and their numbers in bitsandbytes' state."""


def convert_moments(tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any], kind: str) -> State:
    """Return the state of "adamw" as one of "adamw8bit", or the reverse, as `kind` names the result.

    8 bits round each moment to the nearest of 256 values of its block, as every step of that optimizer does. The other
    direction is exact.
    """
    return _to_8_bits(tensors) if kind == "adamw8bit" else _to_32_bits(tensors, numbers)


def _to_8_bits(tensors: Mapping[str, torch.Tensor]) -> State:
    result: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    maps = {"1": dynamic_map(signed=True), "2": dynamic_map(signed=False)}
    for key, tensor in tensors.items():
        parameter, name = key.split("/")
        if name not in _MOMENTS:
            numbers[key] = int(tensor)
            continue
        moment, prefix = _MOMENTS[name], f"{parameter}/{NESTED}"
        result[f"{prefix}/state{moment}"] = tensor
        if tensor.numel() >= SMALL:
            indices, scales = quantize(tensor.reshape(-1), maps[moment])
            result[f"{prefix}/state{moment}"] = indices.view(tensor.shape)
            result[f"{prefix}/qmap{moment}"] = maps[moment]
            result[f"{prefix}/absmax{moment}"] = scales
    return result, numbers


def _to_32_bits(tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> State:
    result = {key: torch.tensor(float(step)) for key, step in numbers.items() if key.endswith("/step")}
    for key, tensor in tensors.items():
        prefix, _, name = key.rpartition("/")
        for exact, moment in _MOMENTS.items():
            if name == f"state{moment}":
                flat = tensor.reshape(-1)
                if f"{prefix}/qmap{moment}" in tensors:
                    flat = dequantize(flat, tensors[f"{prefix}/absmax{moment}"], tensors[f"{prefix}/qmap{moment}"])
                result[f"{prefix.split('/')[0]}/{exact}"] = flat.view(tensor.shape)
    return result, {}
