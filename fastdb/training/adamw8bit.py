"""AdamW with 8-bit moments in plain torch, for machines on which bitsandbytes is missing or broken.

The state has the names, types and shapes of bitsandbytes' `AdamW8bit`, so that a session resumes with either; results
match up to rounding. Moments are quantized in blocks of 256 to a dynamic data type (Dettmers et al. 2022, sections 1.3
and 2.1). The update itself uses the moments in 32 bits (Loshchilov and Hutter 2019, algorithm 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

BLOCK = 256
"""Numbers that share one scale."""
SMALL = 4096
"""Weights below which a tensor's moments stay in 32 bits."""
_CHUNK = BLOCK << 14
"""Weights that are updated together, which bounds the memory for their moments in 32 bits."""
NESTED = "__bnb_optimizer_quant_state__"
"""Key under which bitsandbytes nests the moments in its `state_dict`."""


def dynamic_map(signed: bool) -> torch.Tensor:
    """Return the 256 values of the dynamic data type in ascending order, float32 in -1..1 or 0..1.

    The exponent is unary: each of 7 decades below 1 has twice the values of the decade below it, at the centres of
    equal parts of 0.1..1. The rest are 0 and 1.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float32)
        centres = (10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += [*centres, *(-centre for centre in centres)] if signed else centres
    return torch.tensor(sorted(values), dtype=torch.float32)


def quantize(numbers: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of the value nearest to each number of a block, uint8, and the scale of each block, float32.

    Args:
        numbers: float32 (count,).
        values: of the data type, ascending.
    """
    count = numbers.numel()
    padded = torch.nn.functional.pad(numbers, (0, -count % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(dim=1)
    relative = padded / torch.where(scales > 0, scales, 1)[:, None]
    return torch.bucketize(relative, (values[:-1] + values[1:]) / 2).to(torch.uint8).view(-1)[:count], scales


def dequantize(indices: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the numbers, float32 (count,), of what `quantize` returned."""
    return values[indices.int()] * scales.repeat_interleave(BLOCK)[: indices.numel()]


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with 8-bit moments; its state is that of bitsandbytes' class of this name."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._maps = {"qmap1": dynamic_map(signed=True), "qmap2": dynamic_map(signed=False)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every weight that has a gradient."""
        if closure is not None:
            raise ValueError("a closure is not supported")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as bitsandbytes does, with the moments nested a level deeper."""
        whole: dict[str, Any] = super().state_dict()
        nested = {
            number: {"step": state["step"], NESTED: {name: state[name] for name in state if name != "step"}}
            for number, state in whole["state"].items()
        }
        return {**whole, "state": nested}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state of this class or of bitsandbytes; torch's own method would convert the indices to floats."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: saved[name] for name in ("lr", "betas", "eps", "weight_decay")})
        self.state.clear()
        for number, saved in state_dict["state"].items():
            weight = weights[int(number)]
            tensors = {**saved, **saved.get(NESTED, {})}
            self.state[weight] = {
                name: value.to(weight.device) if isinstance(value, torch.Tensor) else value
                for name, value in tensors.items()
                if name != NESTED
            }

    def _begin(self, weight: torch.Tensor) -> dict[str, Any]:
        """Return the state of a weight before its first step."""
        if weight.numel() < SMALL:
            return {"step": 0, "state1": torch.zeros_like(weight), "state2": torch.zeros_like(weight)}
        blocks = -(-weight.numel() // BLOCK)
        state: dict[str, Any] = {"step": 0}
        for moment in "12":
            # One tensor for all weights.
            values = self._maps[f"qmap{moment}"] = self._maps[f"qmap{moment}"].to(weight.device)
            state[f"state{moment}"] = torch.zeros_like(weight, dtype=torch.uint8)
            state[f"qmap{moment}"] = values
            state[f"absmax{moment}"] = torch.zeros(blocks, device=weight.device)
        return state

    def _update(self, weight: torch.nn.Parameter, group: Mapping[str, Any]) -> None:
        state = self.state[weight] = self.state.get(weight) or self._begin(weight)
        state["step"] += 1
        flat, gradient = weight.view(-1), weight.grad.reshape(-1).float()
        for start in range(0, weight.numel(), _CHUNK):
            part = slice(start, min(start + _CHUNK, weight.numel()))
            blocks = slice(start // BLOCK, -(-part.stop // BLOCK))
            first, second = (self._moment(state, moment, part, blocks) for moment in "12")
            self._adamw(flat[part], gradient[part], first, second, state["step"], group)
            for moment, numbers in (("1", first), ("2", second)):
                if f"qmap{moment}" in state:
                    indices, scales = quantize(numbers, state[f"qmap{moment}"])
                    state[f"state{moment}"].view(-1)[part] = indices
                    state[f"absmax{moment}"][blocks] = scales

    @staticmethod
    def _moment(state: Mapping[str, Any], moment: str, part: slice, blocks: slice) -> torch.Tensor:
        """Return a part of a moment in 32 bits; a moment that is kept in 32 bits is shared."""
        kept: torch.Tensor = state[f"state{moment}"].view(-1)[part]
        if f"qmap{moment}" not in state:
            return kept
        return dequantize(kept, state[f"absmax{moment}"][blocks], state[f"qmap{moment}"])

    @staticmethod
    def _adamw(
        weight: torch.Tensor,
        gradient: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        step: int,
        group: Mapping[str, Any],
    ) -> None:
        """Update flat weights and their moments in place."""
        (beta1, beta2), rate = group["betas"], group["lr"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weight.mul_(1 - rate * group["weight_decay"])
        scale = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        weight.addcdiv_(first, scale, value=-rate / (1 - beta1**step))
