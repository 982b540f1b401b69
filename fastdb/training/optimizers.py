"""AdamW in 32 or 8 bit, and its state as named tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fastdb.config import OptimizerConfig
from fastdb.errors import CheckpointError, first_line
from fastdb.training.adamw8bit import SMALL, AdamW8bit


def choose_optimizer(name: str, device_kind: str, begun_with: str = "") -> tuple[str, str]:
    """Return the optimizer to use and the reason.

    Args:
        name: "adamw", "adamw8bit" or "auto".
        begun_with: the optimizer of the stage's checkpoint, if there is a checkpoint.
    """
    if name == "auto" and begun_with:
        return begun_with, "the stage began with it"
    if name != "auto":
        return name, "as asked"
    if device_kind != "cuda":
        return "adamw", "8 bit saves GPU memory only"
    if fault := fault_of_bitsandbytes(device_kind):
        return "adamw8bit", f"moments take 2 bytes per weight instead of 8, in plain torch because {fault}"
    return "adamw8bit", "moments take 2 bytes per weight instead of 8"


@functools.cache
def fault_of_bitsandbytes(device_kind: str) -> str:
    """Return why bitsandbytes does not work, or ""; new versions of CUDA have broken its libraries before."""
    try:
        import bitsandbytes

        weight = torch.nn.Parameter(torch.zeros(SMALL, device=device_kind))
        weight.grad = torch.ones_like(weight)
        bitsandbytes.optim.AdamW8bit([weight]).step()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"bitsandbytes does not work ({first_line(error)})"
    return ""


def moments_by(name: str, device_kind: str) -> str:
    """Return what computes the optimizer "adamw" or "adamw8bit" on a device; another one rounds differently."""
    return "torch" if name == "adamw" or fault_of_bitsandbytes(device_kind) else "bitsandbytes"


def make_optimizer(
    name: str, groups: Sequence[Iterable[torch.nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build "adamw" or "adamw8bit" over groups of parameters, whose rates the loop sets.

    8-bit moments are those of bitsandbytes, or of plain torch where it does not work, with the same state.
    """
    parameters = [{"params": list(group)} for group in groups]
    options: dict[str, Any] = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if moments_by(name, "cuda" if torch.cuda.is_available() else "cpu") == "torch":
        return AdamW8bit(parameters, **options)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **options)
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizer's state as tensors named `<parameter>/<name>` and plain numbers with such names.

    bitsandbytes nests its quantized moments a level deeper: `<parameter>/<group>/<name>`.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}

    def sort(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                sort(inner, f"{key}/{name}")
        elif isinstance(value, torch.Tensor):
            tensors[key] = value
        else:
            numbers[key] = value

    for parameter, state in optimizer.state_dict()["state"].items():
        sort(state, str(parameter))
    return tensors, numbers


def restore_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]
) -> None:
    """Restore the state that `state_tensors` returned.

    Raises:
        CheckpointError: the state belongs to another set of parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        parameter, *groups, name = key.split("/")
        place = state.setdefault(int(parameter), {})
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    whole = optimizer.state_dict()
    count = sum(len(group["params"]) for group in whole["param_groups"])
    if state and set(state) != set(range(count)):
        raise CheckpointError(
            f"the optimizer state has {len(state)} tensors, but the model has {count}",
            where="optimizer state",
            fix="The checkpoint belongs to another model; start over with --restart.",
        )
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
