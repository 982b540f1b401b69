"""Settings of a session, with the classic recipe as defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fastdb.config.keyword_names import EnvironmentConfig, TokenConfig
from fastdb.config.lora import LoRAConfig
from fastdb.config.stages import Extension, RateChange, TextEncoderConfig, UNetConfig
from fastdb.config.validation import Settings, build
from fastdb.errors import ConfigError
from fastdb.reporting import SILENT, Note, Report


class PriorConfig(Settings):
    """Prior preservation with class images (Ruiz et al. 2023, section 3.2)."""

    class_images: int = Field(0, ge=0, le=10_000, description="Number of class images; 0 turns prior preservation off.")
    prompts: tuple[str, ...] = Field(
        (), description="Prompts of the class images, used in turn; if empty, such as `a photo of a dog`."
    )
    weight: float = Field(1.0, ge=0, le=10, description="Weight of the class images' loss.")
    batch_size: int = Field(0, ge=0, le=256, description="Class images per forward pass; 0 uses `batch_size`.")
    steps: int = Field(20, ge=1, le=1000, description="Sampler steps for the class images.")
    guidance: float = Field(7.5, ge=0, le=50, description="Classifier-free guidance scale for the class images.")

    @model_validator(mode="before")
    @classmethod
    def _one_prompt(cls, data: Any) -> Any:
        """Accept a single prompt, also under its name in earlier versions, `prompt`."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if "prompt" in data:
            if data.get("prompts") and data["prompt"]:
                raise ValueError("`prior.prompt` is the old name of `prior.prompts`: set only one of them")
            data["prompts"] = data.pop("prompt") or data.get("prompts") or ()
        if isinstance(data.get("prompts"), str):
            data["prompts"] = (data["prompts"],) if data["prompts"].strip() else ()
        return data

    @field_validator("prompts")
    @classmethod
    def _no_empty_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(prompt.strip() for prompt in value):
            raise ValueError(
                "must not contain an empty prompt; an empty list means a prompt such as `a photo of a dog`"
            )
        return value


class CaptionConfig(Settings):
    """Prompts of the instance images."""

    instance_prompt: str = Field("", description="Prompt of every instance image; if empty, the file name.")
    caption_files: bool = Field(True, description="Append the text of `captions/<stem>.txt` where it exists.")
    caption_dropout: float = Field(
        0, ge=0, le=1, description="Fraction of turns in which an image has its instance prompt without the caption."
    )
    dropout: float = Field(0, ge=0, le=1, description="Fraction of turns in which an image has the empty prompt.")


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019), betas 0.9 and 0.999, epsilon 1e-8."""

    name: Literal["auto", "adamw", "adamw8bit"] = Field("auto", description="auto: adamw8bit on a GPU, else adamw.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000, description="Largest gradient norm; larger gradients are clipped. 0 clips none."
    )
    fused_backward_pass: bool = Field(
        False,
        description="Update each weight within the backward pass and free its gradient, which saves 4 bytes per weight "
        "and time; the result is the same. Needs `max_grad_norm` 0, and no fp16.",
    )

    @field_validator("fused_backward_pass")
    @classmethod
    def _without_clipping(cls, value: bool, others: ValidationInfo) -> bool:
        if value and others.data.get("max_grad_norm"):
            raise ValueError(
                "a gradient that is applied at once cannot be clipped by the norm of all gradients: set "
                "optimizer.max_grad_norm=0 too"
            )
        return value


class CheckpointConfig(Settings):
    """When checkpoints are saved, copied and deleted."""

    every_steps: int = Field(500, ge=1, le=100_000, description="Save a checkpoint after this many steps.")
    every_minutes: float = Field(
        10, gt=0, le=1440, description="Save a checkpoint after this many minutes, if earlier."
    )
    keep_last: int = Field(
        2,
        ge=2,
        le=100,
        description="Number of newest valid checkpoints to keep per stage. More than 2 are all published: the newest "
        "first, the others when nothing else is pending and at the end of a run.",
    )
    keep_every: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Also save at multiples of this step, and never delete those; 0 turns this off.",
    )
    publish_mb_per_second: float = Field(
        50, gt=0, le=100_000, description="Highest rate for copying checkpoints into the session's folder, in MB/s."
    )
    patience_minutes: float = Field(
        10, ge=0, le=1440, description="Minutes to wait at the end of a run if the session's disk rejects writes."
    )


class SampleConfig(Settings):
    """Samples made during training, without influence on it."""

    every_steps: int = Field(0, ge=0, le=100_000, description="Make samples every this many steps; 0 makes none.")
    prompts: tuple[str, ...] = Field((), description="Prompts of the samples; if empty, the first instance prompt.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the first sample; later samples use the following numbers."
    )
    steps: int = Field(20, ge=1, le=1000, description="Sampler steps.")
    guidance: float = Field(7.5, ge=0, le=50, description="Classifier-free guidance scale.")


class StopConfig(Settings):
    """Loss on fixed images, noises and timesteps, without influence on the training unless `when` is set."""

    when: Literal["off", "settled"] = Field(
        "off",
        description="settled: end a stage when this loss, and in the UNet stage the likeness of samples, have not "
        "improved during `patience` checks; off: train all steps.",
    )
    patience: int = Field(
        6,
        ge=2,
        le=1000,
        description="Checks in a row without an improvement by 1 % after which a stage has settled.",
    )
    check_loss: bool = Field(True, description="Measure the loss on fixed images, noises and timesteps.")
    check_every: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Steps between two measurements; 0: as often as 3 % of the stage's time allow.",
    )
    hold_out: int = Field(
        0, ge=0, le=1000, description="Instance images that are not trained on; their loss is measured apart."
    )


class Config(Settings):
    """All settings of a session."""

    resolution: int = Field(
        512, ge=64, le=2048, description="Side of the square training images in pixels, a multiple of 64."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of all randomness in training.")
    batch_size: int = Field(1, ge=1, le=256, description="Instance images per forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Forward passes per optimizer step.")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="auto: the fastest that the device supports in hardware."
    )
    gradient_checkpointing: bool = Field(False, description="Use less memory and about a fifth more time.")
    deterministic: bool = Field(
        True, description="Results repeat bit by bit; false allows faster operations that repeat up to rounding only."
    )
    split_batches: bool = Field(
        False, description="Compute the images of a batch one by one: less memory, and results equal up to rounding."
    )
    min_snr_gamma: float = Field(
        0, ge=0, le=100, description="Gamma of Min-SNR loss weighting (Hang et al. 2023, who use 5); 0 turns it off."
    )
    method: Literal["full", "lora"] = Field(
        "full", description="full: all weights of a part train; lora: only low-rank adapters, whose files are small."
    )
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    unet: UNetConfig = UNetConfig()
    prior: PriorConfig = PriorConfig()
    captions: CaptionConfig = CaptionConfig()
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    samples: SampleConfig = SampleConfig()
    token: TokenConfig = TokenConfig()
    stop: StopConfig = StopConfig()
    environment: EnvironmentConfig = EnvironmentConfig()

    @field_validator("resolution")
    @classmethod
    def _whole_latents(cls, value: int) -> int:
        if value % 64:
            below = value - value % 64
            raise ValueError(f"must be a multiple of 64, such as {max(below, 64)} or {below + 64}")
        return value

    def changed(self, changes: Mapping[str, Any]) -> Config:
        """Return a copy with dotted settings replaced, such as `{"unet.steps": 200}`.

        A mapping for a group, such as `{"unet": {"steps": 200}}`, replaces only the settings it contains.

        Raises:
            ConfigError: unknown names or invalid values, all of them in one message.
        """
        data: dict[str, Any] = self.model_dump()
        for name, value in changes.items():
            *groups, last = name.split(".")
            target = data
            for group in groups:
                inner = target.setdefault(group, {})
                target = inner if isinstance(inner, dict) else target.setdefault(name, {})
            held = target.get(last)
            target[last] = {**held, **value} if isinstance(held, dict) and isinstance(value, Mapping) else value
        return build(Config, data)

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """Return the dotted names of the settings that differ, each with this and the other value."""
        mine, theirs = dict(flat(self.model_dump())), dict(flat(other.model_dump()))
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def summary(self, other: Config) -> list[str]:
        """Return the settings that differ, each as `unet.steps 200`; long values are shortened."""
        return [f"{name} {_shortened(mine)}" for name, (mine, _) in self.differences(other).items()]


_LONGEST_SHOWN = 60


def flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting with its dotted name."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def format_setting(value: Any) -> str:
    """Format a setting's value, as `flat` yields it, on one line."""
    if isinstance(value, list | tuple) and not value:
        return "none"
    if not (isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)):
        return str(value)
    for kind in (Extension, RateChange):
        with suppress(ValidationError):
            return " + ".join(str(kind.model_validate(item)) for item in value)
    return str(value)


def format_change(old: Any, new: Any) -> tuple[str, str]:
    """Format two values of a setting, each in about 60 characters that show the first difference."""
    texts = _shortened(old), _shortened(new)
    if texts[0] != texts[1]:
        return texts
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        number = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
        entries = format_change(old[number], new[number])
        return f"{texts[0]}, number {number + 1} {entries[0]!r}", f"{texts[1]}, number {number + 1} {entries[1]!r}"
    before, after = format_setting(old), format_setting(new)
    same = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    begin = max(0, same - _LONGEST_SHOWN // 2)
    part = slice(begin, begin + _LONGEST_SHOWN - 6)
    return f"...{before[part]}...", f"...{after[part]}..."


def _shortened(value: Any) -> str:
    """Return a setting's value in at most 60 characters."""
    text = format_setting(value)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{len(value)} values" if isinstance(value, list | tuple) else f"{text[: _LONGEST_SHOWN - 3]}..."


def parse_settings(pairs: Iterable[str], report: Report = SILENT) -> dict[str, Any]:
    """Parse `unet.steps=800` pairs; a list is parsed as YAML, other values by the type of their setting.

    Of a name that is given more than once the last value holds, which is reported.

    Raises:
        ConfigError: a pair has no name or no equals sign.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise ConfigError(
                "is not a setting and a value", subject=repr(pair), fix="Write it as --set unet.steps=800."
            )
        if name in settings:
            report.note(Note("setting repeated", name, value))
        settings[name] = value
        if value.startswith("["):
            try:
                settings[name] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):
                continue  # Reported with its name and value when the settings are built.
    return settings
