"""What a person may set, with the classic recipe as defaults; checked when built, all faults together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fastdb.errors import ConfigError


class Settings(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class TextEncoderConfig(Settings):
    """The first stage: the text encoder learns the subject's word; the UNet stands still, or learns beside it."""

    mode: Literal["first", "joint"] = Field(
        "first", description="first: in a stage of its own; joint: in the first `steps` steps of the UNet's stage."
    )
    steps: int = Field(350, ge=0, le=100_000, description="Optimizer steps; 0 leaves the text encoder as it is.")
    learning_rate: float = Field(1e-6, gt=0, le=0.1, description="Rate of the first step; falls linearly to 0.")


class Extension(Settings):
    """Steps that the UNet's stage goes on for; `training/schedules.py` has the formulas."""

    steps: int = Field(ge=1, le=100_000, description="Optimizer steps.")
    schedule: Literal["hold", "rewarm", "decay"] = Field(
        description="hold: the rate stays; decay: falls to 0; rewarm: rises in the first tenth, then falls to 0."
    )
    learning_rate: float = Field(gt=0, le=0.1, description="The highest rate.")

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.schedule} at {self.learning_rate:g}"


class UNetConfig(Settings):
    """The second stage: the UNet learns the subject's look; the text encoder stands still."""

    steps: int = Field(1500, ge=0, le=100_000, description="Optimizer steps; 0 leaves the UNet as it is.")
    learning_rate: float = Field(2e-6, gt=0, le=0.1, description="Rate of the first step; falls linearly to 0.")
    ema_decay: float = Field(
        0, ge=0, lt=1, description="The result is the weights' running average of this decay; 0 takes the last weights."
    )
    extensions: tuple[Extension, ...] = Field(
        (),
        max_length=100,
        description="Steps after these, as `fastdb extend` adds them: `steps`, `schedule`, `learning_rate`.",
    )

    @property
    def all_steps(self) -> int:
        """Optimizer steps with those it was extended by."""
        return self.steps + sum(one.steps for one in self.extensions)


class PriorConfig(Settings):
    """Prior preservation: class images hold the rest of the class in place (Ruiz et al. 2023, section 3.2)."""

    class_images: int = Field(0, ge=0, le=10_000, description="How many class images to train beside; 0 turns it off.")
    prompts: tuple[str, ...] = Field(
        (), description="Prompts of the class images, in turn; empty takes `a photo of` and the class word."
    )
    weight: float = Field(1.0, ge=0, le=10, description="Weight of the class images' loss.")
    batch_size: int = Field(0, ge=0, le=256, description="Class images per forward pass; 0 takes `batch_size`.")
    steps: int = Field(20, ge=1, le=1000, description="Sampler steps of the class images.")
    guidance: float = Field(7.5, ge=0, le=50, description="Classifier-free guidance scale of the class images.")

    @model_validator(mode="before")
    @classmethod
    def _one_prompt(cls, data: Any) -> Any:
        """A prompt alone is a list of one; so it was called before there could be several: `prompt`."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if "prompt" in data:
            if data.get("prompts") and data["prompt"]:
                raise ValueError("`prior.prompt` is the old name of `prior.prompts`: give one of them")
            data["prompts"] = data.pop("prompt") or data.get("prompts") or ()
        if isinstance(data.get("prompts"), str):
            data["prompts"] = (data["prompts"],) if data["prompts"].strip() else ()
        return data

    @field_validator("prompts")
    @classmethod
    def _all_say_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(prompt.strip() for prompt in value):
            raise ValueError("must have no empty prompt; an empty list takes `a photo of` and the class word")
        return value


class CaptionConfig(Settings):
    """What is said of an instance image."""

    instance_prompt: str = Field("", description="Prompt of every instance image; empty takes its file name.")
    caption_files: bool = Field(True, description="Add the text of `captions/<stem>.txt` where there is one.")
    dropout: float = Field(
        0, ge=0, le=1, description="Share of an image's turns without its caption: the instance prompt alone."
    )


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019), betas 0.9 and 0.999, epsilon 1e-8."""

    name: Literal["auto", "adamw", "adamw8bit"] = Field(
        "auto", description="auto: adamw8bit on a GPU where bitsandbytes works, else adamw."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="The gradient's norm is clipped to this.")


class CheckpointConfig(Settings):
    """How much work a dead machine may cost."""

    every_steps: int = Field(500, ge=1, le=100_000, description="Save after this many steps.")
    every_minutes: float = Field(10, gt=0, le=1440, description="Save after this many minutes, whichever is first.")
    keep_last: int = Field(2, ge=2, le=100, description="Keep so many of the newest that verify, of each stage.")
    keep_every: int = Field(
        0, ge=0, le=100_000, description="Save at multiples of this step too, and never remove those; 0 keeps none."
    )
    publish_mb_per_second: float = Field(
        50, gt=0, le=100_000, description="How fast checkpoints are copied into the session's folder at most."
    )
    patience_minutes: float = Field(
        10, ge=0, le=1440, description="How long the end of a run waits for a session's disk that takes nothing."
    )


class SampleConfig(Settings):
    """Pictures made on the way; they never change the training."""

    every_steps: int = Field(0, ge=0, le=100_000, description="Make samples after this many steps; 0 makes none.")
    prompts: tuple[str, ...] = Field((), description="Prompts of the samples; empty takes the first instance prompt.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the first sample; the next ones follow.")
    steps: int = Field(20, ge=1, le=1000, description="Sampler steps.")
    guidance: float = Field(7.5, ge=0, le=50, description="Classifier-free guidance scale.")


class Config(Settings):
    """Everything a session may set."""

    resolution: int = Field(512, ge=64, le=2048, description="Side of the square training images in pixels.")
    seed: int = Field(0, ge=0, lt=2**63, description="Everything random in training follows from this number.")
    batch_size: int = Field(1, ge=1, le=256, description="Instance images per forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Forward passes per optimizer step.")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="auto: what the device is fast at.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a fifth more time.")
    min_snr_gamma: float = Field(
        0, ge=0, le=100, description="Weigh timesteps by Min-SNR (Hang et al. 2023), 5 in the paper; 0 turns it off."
    )
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    unet: UNetConfig = UNetConfig()
    prior: PriorConfig = PriorConfig()
    captions: CaptionConfig = CaptionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    samples: SampleConfig = SampleConfig()

    @field_validator("resolution")
    @classmethod
    def _whole_latents(cls, value: int) -> int:
        if value % 64:
            below = value - value % 64
            raise ValueError(f"must be a multiple of 64: {max(below, 64)} or {below + 64} is next to it")
        return value

    def changed(self, changes: Mapping[str, Any]) -> Config:
        """A copy with dotted settings replaced, such as `{"unet.steps": 200}`.

        Raises:
            ConfigError: names, kinds or bounds that do not fit, all of them in one message.
        """
        data: dict[str, Any] = self.model_dump()
        for name, value in changes.items():
            *groups, last = name.split(".")
            place = data
            for group in groups:
                inner = place.setdefault(group, {})
                place = inner if isinstance(inner, dict) else place.setdefault(name, {})
            place[last] = value
        return build(Config, data)

    def differences(self, other: Config) -> list[str]:
        """The settings that differ, each as `unet.steps 200 -> 300`."""
        mine, theirs = dict(flat(self.model_dump())), dict(flat(other.model_dump()))
        differ = [name for name in mine if mine[name] != theirs[name]]
        return [f"{name} {setting_told(mine[name])} -> {setting_told(theirs[name])}" for name in differ]


Built = TypeVar("Built", bound=Settings)


def flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def setting_told(value: Any) -> str:
    """A setting's value, as `flat` gives it, in a line; extensions as a person says them."""
    if not (isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value)):
        return str(value)
    try:
        return " + ".join(str(Extension.model_validate(one)) for one in value)
    except ValidationError:
        return str(value)


def build(kind: type[Built], data: Any, where: object = None) -> Built:
    """Build `kind` from plain data; `where` names the file it came from.

    Raises:
        ConfigError: every fault at once, with the nearest known name for an unknown one.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(kind, fault) for fault in error.errors(include_url=False)]
        raise ConfigError("; ".join(faults), where=where, fix="Correct this and run the same command again.") from None


def _sentence(kind: type[Settings], fault: Mapping[str, Any]) -> str:
    """One fault as a clause: the setting, what it is, what it may be."""
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        if isinstance(fault["input"], Mapping) and "." not in str(fault["loc"][-1]):
            name = ".".join([name, *(str(part) for part in list(fault["input"])[:1])])
        near = difflib.get_close_matches(name, known(kind), n=1, cutoff=0.5)
        return f"{name} is no setting" + (f" (did you mean {near[0]}?)" if near else "")
    if fault["type"] == "missing":
        return f"{name} is missing"
    reason = str(fault["msg"]).removeprefix("Value error, ")
    reason = reason.removeprefix("Input ")
    given = fault["input"]
    # A number typed on the command line comes as text; it is a number all the same.
    shown = given if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", given, re.I) else repr(given)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return f"{name or 'the whole'} is {shown}, but {reason}"


def known(kind: type[Settings], before: str = "") -> list[str]:
    """The dotted names of every setting below `kind`."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            names += known(inner, f"{before}{name}.")
        else:
            names.append(f"{before}{name}")
    return names
