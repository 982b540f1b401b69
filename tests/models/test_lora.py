"""Adapted layers, and the equality of an adapter inside a module with its difference merged into the weights."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.config import LoRAConfig
from fastdb.errors import ModelError
from fastdb.formats.safetensors_file import save_tensors
from fastdb.models.diffusers_configs import configs
from fastdb.models.family import SD1
from fastdb.models.loading import load_part
from fastdb.models.lora.adapter import read_adapter
from fastdb.models.lora.layers import adapter_weights, attach
from fastdb.models.lora.targets import target_layers
from fastdb.training.batches import generator
from fastdb.training.methods import LoRA

COUNTS = {
    ("unet", "kohya"): 192,
    ("unet", "kohya-conv"): 278,
    ("unet", "attention"): 128,
    ("text_encoder", "kohya"): 72,
    ("text_encoder", "kohya-conv"): 72,
    ("text_encoder", "attention"): 48,
}


@cache
def sd15(part: str) -> Any:
    """Stable Diffusion 1.5's UNet or text encoder without numbers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = dict(configs(SD1)[f"{part}/config.json"])
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        return CLIPTextModel(CLIPTextConfig(**config))


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in module.named_parameters() if ".lora_" not in name}


@pytest.mark.parametrize(("part", "targets"), COUNTS)
def test_as_many_layers_are_adapted_as_sd_scripts_and_diffusers_adapt(part: str, targets: str) -> None:
    layers = target_layers(part, shapes_of(sd15(part)), targets)
    assert len(layers) == COUNTS[part, targets]
    assert not any(re.search("conv_in|conv_out|time_embedding|embeddings", name) for name in layers)


def test_names_of_either_version_of_transformers_give_the_same_layers() -> None:
    new = shapes_of(sd15("text_encoder"))
    old = {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in new.items()}
    bare = {name.removeprefix("text_model."): shape for name, shape in new.items()}
    assert target_layers("text_encoder", old, "kohya") == target_layers("text_encoder", bare, "kohya")


def attached(part: str, targets: str = "kohya-conv", rank: int = 4, scale: float = 0.5) -> Any:
    """Mini's part with adapters, all of whose factors are random."""
    from fastdb.models.registry import MINI
    from fastdb.models.resolve import resolve_base

    module = load_part(resolve_base(MINI).folder, part)
    attach(module, part, rank=rank, scale=scale, targets=targets, dropout=0.0)
    with torch.no_grad():
        for name, weight in adapter_weights(module).items():
            weight.copy_(torch.randn(weight.shape, generator=generator(name)) * 0.05)
    return module


def called(module: Any, part: str) -> Any:
    """The output of a part for fixed inputs."""
    numbers = generator("inputs")
    with torch.no_grad():
        if part == "text_encoder":
            return module(torch.randint(0, module.config.vocab_size, (2, 77), generator=numbers))[0]
        width = module.config.cross_attention_dim
        inputs = torch.randn(2, 4, 8, 8, generator=numbers), torch.tensor([3, 700])
        return module(*inputs, torch.randn(2, 77, width, generator=numbers)).sample


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_merged_adapter_has_the_effect_of_the_adapter(part: str, mini: Path, tmp_path: Path) -> None:
    """Linear layers, 1x1 and 3x3 convolutions, and those of stride 2."""
    module, method = attached(part), LoRA(LoRAConfig(rank=4, alpha=2, targets="kohya-conv"), 0)
    file = tmp_path / f"{part}.safetensors"
    save_tensors(file, method.state(module))
    adapter = read_adapter(file)
    assert len(adapter) * 2 == len(adapter_weights(module))
    assert {pair.alpha for pair in adapter.values()} == {2.0}
    merged, base = (load_part(mini, part, weights=weights) for weights in (file, None))
    ours, theirs, before = (called(each, part) for each in (module, merged, base))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, rtol=1e-2, atol=1e-2)


def test_an_adapter_of_other_settings_is_refused(mini: Path, tmp_path: Path) -> None:
    file = tmp_path / "unet.safetensors"
    save_tensors(file, LoRA(LoRAConfig(rank=4, targets="kohya-conv"), 0).state(attached("unet")))
    with pytest.raises(ModelError, match="other layers or another rank"):
        LoRA(LoRAConfig(rank=8, targets="kohya-conv"), 0).load(mini, "unet", torch.float32, file)


@pytest.mark.parametrize(
    ("init", "spread"),
    [("kaiming", lambda fan_in, _: 1 / math.sqrt(3 * fan_in)), ("gaussian", lambda _, rank: 1 / rank)],
)
def test_the_first_factor_is_drawn_by_the_address_of_its_layer(mini: Path, init: Any, spread: Any) -> None:
    rank = 32
    both = [
        LoRA(LoRAConfig(rank=rank, init=init), seed).load(mini, "text_encoder", torch.float32, None)
        for seed in (5, 5, 6)
    ]
    first, again, other = (adapter_weights(module) for module in both)
    for name, weight in first.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, again[name])
        if name.endswith(".lora_up"):
            assert not weight.any()
        else:
            assert not torch.equal(weight, other[name])
            assert float(weight.detach().std()) == pytest.approx(spread(weight.shape[1], rank), rel=0.1)
    assert not any(weight.requires_grad for name, weight in both[0].named_parameters() if ".lora_" not in name)


@pytest.mark.parametrize(
    ("rank", "alpha", "rslora", "scale"), [(16, 0, False, 1), (16, 4, False, 0.25), (16, 4, True, 1)]
)
def test_scale_follows_from_alpha_and_rank(rank: int, alpha: float, rslora: bool, scale: float) -> None:
    """A file says alpha = scale * rank, which every reader divides by the rank."""
    config = LoRAConfig(rank=rank, alpha=alpha, rslora=rslora)
    assert config.scale == scale
    module = attached("text_encoder", rank=rank)
    assert {float(value) for name, value in LoRA(config, 0).state(module).items() if name.endswith(".alpha")} == {
        scale * rank
    }


def test_adapters_stay_in_single_precision_beside_half_precision_weights(mini: Path) -> None:
    module = LoRA(LoRAConfig(rank=4), 0).load(mini, "unet", torch.bfloat16, None)
    weights = adapter_weights(module)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {weight.dtype for name, weight in module.named_parameters() if ".lora_" not in name} == {torch.bfloat16}
    width = module.config.cross_attention_dim
    with torch.autocast("cpu", torch.bfloat16):
        inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, width)
        module(*inputs).sample.float().square().mean().backward()
    ups = [weight for name, weight in weights.items() if name.endswith(".lora_up")]
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in ups)
    assert all(weight.grad.any() for weight in ups if weight.grad is not None)
