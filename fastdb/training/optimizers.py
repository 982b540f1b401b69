"""AdamW in 32 or 8 bit, its rate, and its state as tensors a safetensors file can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from fastdb.config import OptimizerConfig
from fastdb.errors import CheckpointError, TrainingError


def choose_optimizer(name: str, device_kind: str, begun_with: str = "") -> tuple[str, str]:
    """The optimizer that `name` stands for here, and the reason; `begun_with` is that of the stage's checkpoint.

    Raises:
        TrainingError: the checkpoint's moments are of another kind than those asked for.
    """
    if name == "auto" and begun_with:
        return begun_with, "the stage began with it"
    if begun_with and begun_with != name:
        raise TrainingError(
            f"the stage began with {begun_with}, whose moments {name} cannot take over",
            where="optimizer.name",
            fix=f"Set it to {begun_with} or auto until the stage is over, or start again with --restart.",
        )
    if name != "auto":
        return name, "as asked"
    if device_kind != "cuda":
        return "adamw", "8 bit saves GPU memory, and there is no GPU"
    fault = _fault_of_8bit(device_kind)
    if fault:
        return "adamw", f"{fault}, so moments take 8 bytes a weight instead of 2"
    return "adamw8bit", "its moments take 2 bytes a weight instead of 8"


def _fault_of_8bit(device_kind: str) -> str:
    """Why bitsandbytes does not work here, or nothing: its libraries have broken with new versions of CUDA before."""
    try:
        weight = torch.nn.Parameter(torch.zeros(4096, device=device_kind))
        weight.grad = torch.ones_like(weight)
        make_optimizer("adamw8bit", [[weight]], OptimizerConfig()).step()
    except (TrainingError, RuntimeError, OSError, AttributeError) as error:
        return str(error).splitlines()[0]
    return ""


def make_optimizer(
    name: str, groups: Sequence[Iterable[torch.nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build "adamw" or "adamw8bit" over groups of parameters, whose rates `set_rates` sets.

    Raises:
        TrainingError: 8 bit was asked for and bitsandbytes cannot be loaded.
    """
    parameters = [{"params": list(group)} for group in groups]
    options: dict[str, Any] = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"bitsandbytes cannot be loaded ({error})",
            where="optimizer.name adamw8bit",
            fix="Install bitsandbytes, or set optimizer.name to adamw.",
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **options)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """Set the learning rate of each group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state as named tensors `<parameter>/<name>` and plain numbers of the same naming.

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
    """Put back what `state_tensors` gave.

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
            f"its optimizer knows {len(state)} tensors, the model has {count}",
            where="optimizer state",
            fix="This checkpoint belongs to another model; start again with fastdb train --restart.",
        )
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
