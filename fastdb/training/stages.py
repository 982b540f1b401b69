"""Training stages, each with its trained parts, frozen parts and text conditioning."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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
from fastdb.training.methods import Full, Method, method_of
from fastdb.training.schedules import rate_at

RECENT = 20
"""Number of losses that a checkpoint contains."""


@dataclass(frozen=True)
class Check:
    """Figures after a step: the loss of each group of images on fixed noise, or the likeness of the samples."""

    step: int
    figures: Mapping[str, float]


@dataclass
class Stage:
    """The models of a training stage.

    Attributes:
        name: "text_encoder" or "unet", the part that the stage is named after.
        settings: steps and rate of each part that trains, by the part's name.
        trained: the modules that get gradients, by the part's name; two in joint mode.
        unet: the UNet; among `trained` in the UNet stage.
        embed: maps the text encoder, if it trains, and prompts to embeddings (prompts, 77, width) on the device.
        method: decides which weights of these modules train.
        average: running average of the UNet's trained weights, if the settings have one.
        skipped: steps in a row, up to the last, that the gradient scaler skipped.
        losses: of the last steps.
        checks: figures on fixed noise and of samples so far, which decide whether the stage has settled.
        steps: number of steps in all.
    """

    name: str
    settings: Mapping[str, TextEncoderConfig | UNetConfig]
    trained: dict[str, Any]
    unet: Any
    embed: Callable[[Any, Sequence[str]], torch.Tensor]
    method: Method = field(default_factory=Full)
    average: Average | None = None
    skipped: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    checks: list[Check] = field(default_factory=list)
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.steps = self.settings[self.name].all_steps

    def weights(self, part: str) -> list[torch.nn.Parameter]:
        """Return the weights of a part that train."""
        return list(self.method.weights(self.trained[part]).values())

    @property
    def all_weights(self) -> list[torch.nn.Parameter]:
        """The weights of all parts that train."""
        return [weight for part in self.trained for weight in self.weights(part)]

    def begin_step(self, step: int) -> dict[str, float]:
        """Return the rate of each part after `step` done steps, and freeze parts whose steps are over.

        A frozen part has no gradient, so that it does not count in the gradient's norm.
        """
        for part, module in self.trained.items():
            if step >= self.settings[part].all_steps:
                module.requires_grad_(False)
                for weight in module.parameters():
                    weight.grad = None
        return {part: rate_at(settings, step) for part, settings in self.settings.items()}

    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the text conditioning of prompts, (prompts, 77, width) on the device."""
        encoder = self.trained.get("text_encoder")
        learns = encoder is not None and any(weight.requires_grad for weight in encoder.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self.embed(encoder, prompts)

    @contextmanager
    def as_exported(self, accelerator: Accelerator) -> Iterator[None]:
        """Set the models to evaluation, and the UNet's weights to their average if there is one, in this context."""
        modules = {module: module.training for module in (accelerator.unwrap_model(self.unet), *self.trained.values())}
        for module in modules:
            module.eval()
        try:
            with nullcontext() if self.average is None else self.average.applied():
                yield
        finally:
            for module, was in modules.items():
                module.train(was)

    def prepare(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Prepare trained modules and optimizer for the accelerator's device, precision and processes."""
        *modules, prepared = accelerator.prepare(*self.trained.values(), optimizer)
        self.trained = dict(zip(self.trained, modules, strict=True))
        self.unet = self.trained.get("unet", self.unet)
        own = self.settings[self.name]
        if isinstance(own, UNetConfig) and own.ema_decay:
            unet = accelerator.unwrap_model(self.unet)
            self.average = Average(unet, own.ema_decay, own.ema_on_cpu, self.method)
        whole: torch.optim.Optimizer = prepared
        return whole


def build_stage(
    name: str, base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path], prompts: Sequence[str]
) -> Stage:
    """Load the models of a stage.

    Args:
        weights: the file of each part that was trained so far.
        prompts: every prompt that the stage will be conditioned on.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    if name == "text_encoder":
        return _text_encoder_stage(base, config, device, weights)
    if is_joint(config):
        return _joint_stage(base, config, device, weights)
    return _unet_stage(base, config, device, weights, prompts)


def _text_encoder_stage(base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path]) -> Stage:
    """Return the stage that trains the text encoder; the UNet is frozen in half precision and passes the gradient."""
    method, part = method_of(config), "text_encoder"
    text_encoder = method.load(base.folder, part, device.half, weights.get(part))
    unet = load_part(base.folder, "unet", device.half)
    unet.requires_grad_(False).eval().to(device.kind)
    _train_mode(text_encoder, config)
    if config.gradient_checkpointing:
        # The gradient flows through its activations on the way to the text encoder.
        unet.enable_gradient_checkpointing()
        unet.train()
    settings = {part: config.text_encoder}
    return Stage(part, settings, {part: text_encoder}, unet, _embedder(base, device), method)


def _unet_stage(
    base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path], prompts: Sequence[str]
) -> Stage:
    """Return the stage that trains the UNet; the text encoder embeds every prompt once and is freed."""
    text_encoder = weights.get("text_encoder")
    encoder = load_part(base.folder, "text_encoder", torch.float32, weights=text_encoder).to(device.kind).eval()
    embeddings = cache_embeddings(encoder, load_tokenizer(base.folder), prompts)
    del encoder
    method = method_of(config)
    unet = method.load(base.folder, "unet", device.half, weights.get("unet"))
    _train_mode(unet, config)

    def embed(_trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        return torch.stack([embeddings[prompt] for prompt in prompts]).to(device.kind)

    return Stage("unet", {"unet": config.unet}, {"unet": unet}, unet, embed, method)


def _joint_stage(base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path]) -> Stage:
    """Return the stage that trains the UNet, and with it the text encoder until its own steps are over.

    Extensions train the UNet alone, unless the text encoder has own steps left.
    """
    method = method_of(config)
    unet, encoder = (
        method.load(base.folder, part, device.half, weights.get(part)) for part in ("unet", "text_encoder")
    )
    _train_mode(unet, config)
    _train_mode(encoder, config)
    settings: dict[str, TextEncoderConfig | UNetConfig] = {"unet": config.unet, "text_encoder": config.text_encoder}
    return Stage("unet", settings, {"unet": unet, "text_encoder": encoder}, unet, _embedder(base, device), method)


def _embedder(base: BaseModel, device: Device) -> Callable[[Any, Sequence[str]], torch.Tensor]:
    """Return an `embed` that runs the text encoder in its present state."""
    tokenizer = load_tokenizer(base.folder)

    def embed(trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        states: torch.Tensor = trained(token_ids(tokenizer, prompts).to(device.kind))[0]
        return states

    return embed


def _train_mode(module: Any, config: Config) -> None:
    module.train()
    if config.gradient_checkpointing:
        checkpoint_gradients(module)


def checkpoint_gradients(module: Any) -> None:
    """Enable gradient checkpointing in a module of diffusers or transformers."""
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        # The reentrant form of transformers before 5 yields no gradients if no input of a block has one.
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
