"""The stages: what is trained, what stands still, and where the text conditioning comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.checkpoints.progress import is_joint
from fastdb.config import Config, TextEncoderConfig, UNetConfig
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.loading import load_part, load_tokenizer
from fastdb.runtime.device import Device
from fastdb.training.caches import cache_embeddings, token_ids
from fastdb.training.ema import Average
from fastdb.training.schedules import rate_at


@dataclass
class Stage:
    """One configuration of the loop.

    Attributes:
        name: "text_encoder" or "unet"; also the name of the part it is there for.
        settings: steps and rate of each part that trains, by the part's name.
        trained: the modules that get the gradients, float32, by the part's name; in the joint mode there are two.
        unet: predicts; one of `trained` in the UNet stage.
        embed: the text encoder, if it trains, and prompts -> embeddings (prompts, 77, width) on the device.
        average: of the UNet's weights, where one is kept.
    """

    name: str
    settings: Mapping[str, TextEncoderConfig | UNetConfig]
    trained: dict[str, Any]
    unet: Any
    embed: Callable[[Any, Sequence[str]], torch.Tensor]
    average: Average | None = None

    @property
    def steps(self) -> int:
        """How many steps it has in all."""
        return _steps_of(self.settings[self.name])

    def parameters(self) -> list[torch.nn.Parameter]:
        """Every weight that trains."""
        return [weight for module in self.trained.values() for weight in module.parameters()]

    def begin_step(self, step: int) -> dict[str, float]:
        """The rate of each part in the step after `step` done ones; a part whose steps are over stands still.

        It has no gradient any more then, so that it counts for nothing in the gradient's norm either.
        """
        for part, module in self.trained.items():
            if step >= _steps_of(self.settings[part]):
                module.requires_grad_(False)
                for weight in module.parameters():
                    weight.grad = None
        return {part: rate_at(one, step) for part, one in self.settings.items()}

    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """The text conditioning of prompts, (prompts, 77, width) on the device."""
        encoder = self.trained.get("text_encoder")
        learns = encoder is not None and any(weight.requires_grad for weight in encoder.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self.embed(encoder, prompts)

    def averaged(self) -> AbstractContextManager[None]:
        """Within this the UNet has its result for its weights: their running average where one is kept."""
        return nullcontext() if self.average is None else self.average.shown()

    def prepare(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Put what trains on the accelerator's device, in its precision and among its processes, with its optimizer."""
        *modules, prepared = accelerator.prepare(*self.trained.values(), optimizer)
        self.trained = dict(zip(self.trained, modules, strict=True))
        self.unet = self.trained.get("unet", self.unet)
        own = self.settings[self.name]
        if isinstance(own, UNetConfig) and own.ema_decay:
            self.average = Average(accelerator.unwrap_model(self.unet), own.ema_decay)
        whole: torch.optim.Optimizer = prepared
        return whole


def _steps_of(settings: TextEncoderConfig | UNetConfig) -> int:
    return settings.all_steps if isinstance(settings, UNetConfig) else settings.steps


def build_stage(
    name: str, base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path], prompts: Sequence[str]
) -> Stage:
    """Build a stage by its name: `weights` are those trained so far, `prompts` all that will be asked for.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    if name == "text_encoder":
        return text_encoder_stage(base, config, device, weights.get(name))
    if is_joint(config):
        return joint_stage(base, config, device, weights.get(name), weights.get("text_encoder"))
    return unet_stage(base, config, device, weights.get(name), weights.get("text_encoder"), prompts)


def text_encoder_stage(base: BaseModel, config: Config, device: Device, weights: Path | None) -> Stage:
    """The text encoder trains; the UNet stands still in half precision and passes the gradient on.

    `weights` continues from a checkpoint's text encoder.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    text_encoder = load_part(base.folder, "text_encoder", torch.float32, weights=weights)
    unet = load_part(base.folder, "unet", device.half)
    unet.requires_grad_(False).eval().to(device.kind)
    _learning(text_encoder, config)
    if config.gradient_checkpointing:
        # Its activations are what the gradient flows through on the way to the text encoder.
        unet.enable_gradient_checkpointing()
        unet.train()
    settings = {"text_encoder": config.text_encoder}
    return Stage("text_encoder", settings, {"text_encoder": text_encoder}, unet, _embedder(base, device))


def unet_stage(
    base: BaseModel,
    config: Config,
    device: Device,
    weights: Path | None,
    text_encoder: Path | None,
    prompts: Sequence[str],
) -> Stage:
    """The UNet trains; every prompt is embedded once by the trained text encoder, which then leaves.

    `weights` continues from a checkpoint's UNet; `text_encoder` is what the first stage made, if it ran.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    encoder = load_part(base.folder, "text_encoder", torch.float32, weights=text_encoder).to(device.kind).eval()
    embeddings = cache_embeddings(encoder, load_tokenizer(base.folder), prompts)
    del encoder
    unet = load_part(base.folder, "unet", torch.float32, weights=weights)
    _learning(unet, config)

    def embed(_trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        return torch.stack([embeddings[prompt] for prompt in prompts]).to(device.kind)

    return Stage("unet", {"unet": config.unet}, {"unet": unet}, unet, embed)


def joint_stage(
    base: BaseModel, config: Config, device: Device, weights: Path | None, text_encoder: Path | None
) -> Stage:
    """The UNet trains, and the text encoder beside it until its own steps are over; each has its own rate.

    Steps that the stage was extended by are the UNet's alone, unless the text encoder has some of its own left.

    `weights` and `text_encoder` continue from a checkpoint's UNet and text encoder.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    unet = load_part(base.folder, "unet", torch.float32, weights=weights)
    encoder = load_part(base.folder, "text_encoder", torch.float32, weights=text_encoder)
    _learning(unet, config)
    _learning(encoder, config)
    settings: dict[str, TextEncoderConfig | UNetConfig] = {"unet": config.unet, "text_encoder": config.text_encoder}
    return Stage("unet", settings, {"unet": unet, "text_encoder": encoder}, unet, _embedder(base, device))


def _embedder(base: BaseModel, device: Device) -> Callable[[Any, Sequence[str]], torch.Tensor]:
    """Embeds prompts by the text encoder as it is."""
    tokenizer = load_tokenizer(base.folder)

    def embed(trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        states: torch.Tensor = trained(token_ids(tokenizer, prompts).to(device.kind))[0]
        return states

    return embed


def _learning(module: Any, config: Config) -> None:
    module.requires_grad_(True).train()
    if config.gradient_checkpointing:
        enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
        enable()
