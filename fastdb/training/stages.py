"""The two stages: what is trained, what stands still, and where the text conditioning comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastdb.config import Config, TextEncoderConfig, UNetConfig
from fastdb.models.base_model import BaseModel
from fastdb.models.loading import load_text_encoder, load_tokenizer, load_unet
from fastdb.runtime.device import Device
from fastdb.training.caches import cache_embeddings, token_ids


@dataclass
class Stage:
    """One configuration of the loop.

    Attributes:
        name: "text_encoder" or "unet"; also the name of what is trained.
        trained: gets the gradients, float32.
        unet: predicts; the same module as `trained` in the UNet stage.
        embed: what trains and the prompts -> embeddings (prompts, 77, width) on the device.
    """

    name: str
    settings: TextEncoderConfig | UNetConfig
    trained: Any
    unet: Any
    embed: Callable[[Any, Sequence[str]], torch.Tensor]

    @property
    def steps(self) -> int:
        """How many steps it has in all."""
        return self.settings.steps

    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """The text conditioning of prompts, (prompts, 77, width) on the device."""
        return self.embed(self.trained, prompts)

    def prepare(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Put what trains on the accelerator's device, in its precision and among its processes, with its optimizer."""
        alone = self.unet is self.trained
        self.trained, prepared = accelerator.prepare(self.trained, optimizer)
        self.unet = self.trained if alone else self.unet
        whole: torch.optim.Optimizer = prepared
        return whole


def build_stage(
    name: str, base: BaseModel, config: Config, device: Device, weights: Mapping[str, Path], prompts: Sequence[str]
) -> Stage:
    """Build a stage by its name: `weights` are those trained so far, `prompts` all that will be asked for.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    if name == "text_encoder":
        return text_encoder_stage(base, config, device, weights.get(name))
    return unet_stage(base, config, device, weights.get(name), weights.get("text_encoder"), prompts)


def text_encoder_stage(base: BaseModel, config: Config, device: Device, weights: Path | None) -> Stage:
    """The text encoder trains; the UNet stands still in half precision and passes the gradient on.

    `weights` continues from a checkpoint's text encoder.

    Raises:
        ModelError: the base model or the weights cannot be loaded.
    """
    tokenizer = load_tokenizer(base.folder)
    text_encoder = load_text_encoder(base.folder, torch.float32, weights=weights)
    unet = load_unet(base.folder, device.half)
    unet.requires_grad_(False).eval().to(device.kind)
    _learning(text_encoder, config)
    if config.gradient_checkpointing:
        # Its activations are what the gradient flows through on the way to the text encoder.
        unet.enable_gradient_checkpointing()
        unet.train()

    def embed(trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        states: torch.Tensor = trained(token_ids(tokenizer, prompts).to(device.kind))[0]
        return states

    return Stage("text_encoder", config.text_encoder, text_encoder, unet, embed)


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
    encoder = load_text_encoder(base.folder, torch.float32, weights=text_encoder).to(device.kind).eval()
    embeddings = cache_embeddings(encoder, load_tokenizer(base.folder), prompts)
    del encoder
    unet = load_unet(base.folder, torch.float32, weights=weights)
    _learning(unet, config)

    def embed(_trained: Any, prompts: Sequence[str]) -> torch.Tensor:
        return torch.stack([embeddings[prompt] for prompt in prompts]).to(device.kind)

    return Stage("unet", config.unet, unet, unet, embed)


def _learning(module: Any, config: Config) -> None:
    module.requires_grad_(True).train()
    if config.gradient_checkpointing:
        enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
        enable()
